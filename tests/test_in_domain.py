"""In-domain protocols: every fold of a center held out in turn, its cases pooled, and a missing fold a hole."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from cli_calls import mistake
from leaderboard_runs import add_run, case_row, spec_of
from test_splits import hospitals

from dgbench.atomic import write_bytes, write_json
from dgbench.cli import call
from dgbench.cli.sweep import heldouts_of
from dgbench.data.guard import ReadGuard
from dgbench.data.splits import center_of, make_split
from dgbench.errors import DgbenchError, NotApplicable
from dgbench.launch.phantom import ensure_data
from dgbench.launch.plan import RunRequest, plan_run
from dgbench.leaderboard.compile import compile_runs
from dgbench.leaderboard.figures import centroids, overlays
from dgbench.leaderboard.figures.board import load_board
from dgbench.leaderboard.figures.panels import shown_cells
from dgbench.leaderboard.page.site import write_page
from dgbench.leaderboard.paper_tables import in_domain_pair, paper_table
from dgbench.leaderboard.published import load_published
from dgbench.leaderboard.records import View
from dgbench.leaderboard.results import Table
from dgbench.leaderboard.tables import center_cell
from dgbench.protocol import Protocol, load_protocol
from dgbench.store.slices import slice_file
from dgbench.verification.record import Record
from dgbench.verification.rows import _heldout

IN_DOMAIN = load_protocol("phantom-in-domain")
SOURCE = {"sources": ["RENJI", "NIH"], "protocol": {"name": IN_DOMAIN.name, "ranked": False}}
FOLDS = ("RENJI-fold0", "RENJI-fold1", "RENJI-fold2", "RENJI-fold3")


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


def add_folds(root: Path, method: str, *dsc: tuple[float, ...], seed: int = 0) -> None:
    """A run per fold of RENJI, with the cases of that fold."""
    for fold, values in enumerate(dsc):
        cases = [case_row("RENJI", 10 * fold + index, value) for index, value in enumerate(values)]
        stage = {"stages": {}}
        add_run(root, method, FOLDS[fold], seed, cases=cases, **SOURCE, **stage)


def table_of(root: Path) -> Table:
    (table,) = compile_runs(root, protocol=IN_DOMAIN).tables
    return table


def test_an_in_domain_protocol_is_its_base_but_for_the_split() -> None:
    for name, base in ((IN_DOMAIN.name, "phantom"), ("pancreas-tumor-in-domain", "pancreas-tumor")):
        mine, other = load_protocol(name), load_protocol(base)
        own = {"name", "title", "base", "folds", "presets", "paper_thresholds"}
        assert mine.model_dump(exclude=own) == other.model_dump(exclude=own)
        assert mine.folds == 4
        assert mine.presets["bench"] == other.presets["bench"]
        assert not mine.resolve("bench").ranked
        resolved, plain = mine.resolve("bench"), other.resolve("bench")
        assert all(resolved.steps(stage) == plain.steps(stage) for stage in mine.stages)
    assert load_protocol("phantom").presets["tiny"].phantom != IN_DOMAIN.presets["tiny"].phantom
    assert not load_protocol("pancreas-tumor-in-domain").paper_thresholds, "the paper tells of none"


def test_no_key_of_a_protocol_without_folds_knows_the_field() -> None:
    assert "folds" not in load_protocol("phantom").resolve("bench").identity()
    assert "base" not in IN_DOMAIN.resolve("bench").identity()
    assert IN_DOMAIN.resolve("bench").identity("tumor-fine")["folds"] == 4


def test_every_case_of_a_center_is_judged_once_by_a_training_without_it() -> None:
    centers = hospitals(MSD=20, RENJI=30, RMYY=14, NIH=10)
    judged: list[str] = []
    for heldout in IN_DOMAIN.heldouts_of("RENJI"):
        split = make_split(IN_DOMAIN, centers, heldout)
        assert split.sources == ("RENJI", "NIH")
        assert not set(split.test) & {*split.train, *split.validation}
        own = split.for_stage(support_centers=False)
        assert {center_of(case) for case in (*own.train, *own.validation, *own.test)} == {"RENJI"}
        assert len(own.train) + len(own.validation) + len(own.test) == 30
        assert len(own.validation) == 4, "15 % of 22 or 23"
        judged += split.test
    assert sorted(judged) == sorted(case.id for case in centers["RENJI"].cases)
    assert {len(make_split(IN_DOMAIN, centers, heldout).test) for heldout in FOLDS} == {7, 8}


def test_folds_depend_on_their_own_center_alone() -> None:
    first = make_split(IN_DOMAIN, hospitals(MSD=20, RENJI=30, RMYY=14), "RENJI-fold1")
    assert make_split(IN_DOMAIN, hospitals(MSD=3, RENJI=30, RMYY=50), "RENJI-fold1") == first


def test_too_few_cases_and_other_names_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DgbenchError, match="center RENJI has 3 cases, fewer than the 4 folds"):
        make_split(IN_DOMAIN, hospitals(MSD=5, RENJI=3, RMYY=5), "RENJI-fold3")
    with pytest.raises(DgbenchError, match="source validation would be empty"):
        make_split(IN_DOMAIN, hospitals(MSD=5, RENJI=4, RMYY=5), "RENJI-fold0")
    line = mistake(capsys, ["run", "--protocol", IN_DOMAIN.name, "--method", "erm", "--heldout", "RENJI"])
    assert line.startswith("unknown held-out fold 'RENJI' for protocol 'phantom-in-domain'")


def test_a_file_takes_from_its_base_what_it_does_not_say(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    text = "base: phantom\nname: mine\nversion: 1\ntitle: t\nfolds: 3\npresets:\n  tiny: {width: 16}\n"
    path.write_text(text, encoding="utf-8")
    mine, base = load_protocol(str(path)), load_protocol("phantom")
    assert mine.heldouts[:4] == ("MSD-fold0", "MSD-fold1", "MSD-fold2", "RENJI-fold0")
    assert mine.presets["tiny"] == base.presets["tiny"].model_copy(update={"width": 16})
    path.write_text(text.replace("phantom", "fantom"), encoding="utf-8")
    with pytest.raises(DgbenchError, match="unknown protocol 'fantom'"):
        load_protocol(str(path))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the phantom of the preset tiny drawn."""
    folder = tmp_path_factory.mktemp("cache")
    ensure_data(request_of(folder, Path("runs")))
    return folder


def request_of(cache: Path, runs: Path, heldout: str = FOLDS[0], method: str = "erm") -> RunRequest:
    return RunRequest(method, heldout, IN_DOMAIN.name, preset="tiny", runs=runs, threads=1, cache=cache)


def test_a_plan_holds_the_fold_out_and_needs_methods_of_one_source(cache: Path, tmp_path: Path) -> None:
    plan, other = (plan_run(request_of(cache, tmp_path, heldout)) for heldout in (FOLDS[2], FOLDS[1]))
    assert plan.own.folder.parts[-4:-1] == (IN_DOMAIN.name, FOLDS[2], "erm")
    assert len(plan.split.test) == 2
    for part in plan.folders:
        for job in part.training:
            assert not {case.id for case in job.cases} & set(plan.split.test)
            guard = ReadGuard.over(job.split.train + job.split.validation, job.centers)
            files = {case.id: case.image for center in job.centers for case in center.cases}
            assert all(guard.forbids(str(files[case])) for case in plan.split.test)
            assert not any(guard.forbids(str(case.image)) for case in job.cases)
        assert {case.id for case in plan.evaluated(part)} >= set(plan.split.test)
    assert plan.own.spec.key != other.own.spec.key
    with pytest.raises(NotApplicable, match="needs at least 2 source centers, with RENJI-fold2 held out there are 1"):
        plan_run(request_of(cache, tmp_path, FOLDS[2], "saml"))


def test_no_case_of_the_fold_is_read_to_plan_on_patient_data(cache: Path, tmp_path: Path) -> None:
    """The identity of the data names the other folds, each by itself, so that tables notice a case that changed between two runs."""
    data = shutil.copytree(next((cache / "phantom").iterdir()), tmp_path / "data")
    request = replace(request_of(tmp_path / "cache", tmp_path / "runs"), data=data)
    plan = plan_run(request)
    for case in plan.centers["RENJI"].cases:
        if case.id in plan.split.test:
            case.image.write_bytes(b"changed")
    assert plan_run(replace(request, cache=tmp_path / "other")).own.spec == plan.own.spec
    assert set(plan.own.spec.data.centers) == {*FOLDS[1:], "NIH"}
    neighbour = plan_run(replace(request, heldout=FOLDS[1])).own.spec.data.centers
    assert neighbour[FOLDS[2]] == plan.own.spec.data.centers[FOLDS[2]]
    assert plan.heldout_identity() == {FOLDS[0]: neighbour[FOLDS[0]]}, "judged or trained on, it is the same data"
    assert plan_run(request_of(cache, tmp_path)).heldout_identity() == {}, "the phantom is named by its recipe"


def test_the_cases_of_all_folds_are_averaged_together(tmp_path: Path) -> None:
    """0.2 (once) and 0.8 (three times): a mean over folds would be 0.575 here."""
    add_folds(tmp_path, "erm", (0.2, 0.8), (0.8,), (0.8,), (0.2,))
    row = table_of(tmp_path).rows[0]
    assert row.centers["RENJI"].scores["dsc"].mean == pytest.approx((2 * 0.2 + 3 * 0.8) / 5)
    assert row.centers["RENJI"].counts["n"] == 5
    assert [len(run.folders) for run in row.centers["RENJI"].runs.values()] == [4]
    assert table_of(tmp_path).n_cases == {"RENJI": 5}
    assert not row.complete, "two centers were not run"


def test_a_rule_may_choose_another_threshold_in_every_fold(tmp_path: Path) -> None:
    for fold, best in enumerate((0.6, 0.4, 0.6, 0.4)):
        cases = [
            case_row("RENJI", 10 * fold + index, 0.7 if threshold == best else 0.5, threshold=threshold, role=role)
            for threshold in (0.4, 0.6)
            for index, role in enumerate(("held-out", "source-val"))
        ]
        add_run(tmp_path, "erm", FOLDS[fold], cases=cases, **SOURCE, stages={})
    (table,) = compile_runs(tmp_path, protocol=IN_DOMAIN, view=View(threshold="source-tuned")).tables
    (row,) = table.rows
    assert row.centers["RENJI"].scores["dsc"].mean == pytest.approx(0.7)
    assert "thresholds RENJI 0.6/0.4/0.6/0.4" in row.notes
    assert row.centers["RENJI"].runs[0].thresholds == (0.6, 0.4, 0.6, 0.4)


def test_a_missing_fold_is_a_hole_with_its_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_folds(tmp_path, "erm", (0.2,), (0.8,), (0.8,))
    table = table_of(tmp_path)
    row = table.rows[0]
    assert not row.centers["RENJI"].scores
    holes = [hole for hole in table.missing if hole.center == "RENJI"]
    assert [hole.heldout for hole in holes] == ["RENJI-fold3"]
    assert holes[0].command.endswith("--heldout RENJI-fold3 --seed 0")
    assert center_cell(table, row, "RENJI") == "RENJI-fold3 missing"
    assert center_cell(table, row, "MSD") == "4 folds missing"
    assert len(table.missing) == 9
    assert call(["leaderboard", f"--runs={tmp_path}", "--protocol", IN_DOMAIN.name, "--format", "md"]) == 0
    assert "neither is a bound of the other" in capsys.readouterr().out


def test_table_iv_shows_in_domain_and_held_out_one_after_the_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_folds(tmp_path, "erm", (0.2,), (0.8,), (0.8,), (0.2,))
    asked = ["leaderboard", f"--runs={tmp_path}", "--table", "iv", "--published", "--format", "md"]
    assert call(asked) == 0
    alone = capsys.readouterr().out.replace("\\", "")
    assert "Counterpart of Table IV (in-domain, coarse and fine in both ROIs): protocol phantom-in-domain" in alone
    assert "| F-Seg | erm | 4 folds missing |  |  | 50.0 | 5.0 | 10.0 | 4 folds missing |" in alone
    assert "Table III" not in alone
    assert "| F-Mask | Ours | 48.74 | 10.31 | 20.46 |" in alone
    add_run(tmp_path, "erm", "RENJI", cases=[case_row("RENJI", 0, 0.4)])
    assert call([*asked, "--protocol", IN_DOMAIN.name]) == 0
    both = capsys.readouterr().out.replace("\\", "")
    assert both.index("Counterpart of Table IV") < both.index("Counterpart of Table III") < both.index("REPORTED")


def test_each_table_belongs_to_its_kind_of_protocol() -> None:
    phantom = load_protocol("phantom")
    assert in_domain_pair(phantom) == in_domain_pair(IN_DOMAIN) == (IN_DOMAIN, phantom)
    with pytest.raises(DgbenchError, match="has no in-domain variant"):
        in_domain_pair(load_protocol("hippocampus"))
    for name, protocol in (("IV", phantom), ("III", IN_DOMAIN)):
        with pytest.raises(DgbenchError, match=f"--table {name}: protocol '{protocol.name}' is"):
            paper_table(name, protocol)


def test_what_the_paper_reports_in_domain_stands_beside_in_domain_runs_only() -> None:
    paper = load_published()

    def tables(protocol: Protocol) -> set[str]:
        found = paper.beside(protocol)
        return set() if found is None else {row.table for row in found.counterpart("F-Seg")}

    assert tables(IN_DOMAIN) == {"IV"}
    assert tables(load_protocol("phantom")) == {"VI"}
    assert tables(load_protocol("phantom-neutral")) == set()
    assert tables(load_protocol("hippocampus")) == set()


def test_a_sweep_takes_every_fold_of_a_center_or_single_ones() -> None:
    assert heldouts_of(IN_DOMAIN, "RENJI") == list(FOLDS)
    assert heldouts_of(IN_DOMAIN, "all") == list(IN_DOMAIN.heldouts)
    assert heldouts_of(IN_DOMAIN, "RENJI-fold1, MSD-fold0") == ["RENJI-fold1", "MSD-fold0"]
    assert heldouts_of(load_protocol("phantom"), "all") == ["MSD", "RENJI", "RMYY"]


def test_a_record_of_a_fold_holds_exactly_its_cases(tmp_path: Path) -> None:
    """The fold follows from all cases of the center: what trained and what was judged."""
    spec = spec_of("erm", FOLDS[1], 0, stages={"tumor-fine": {"key": "0" * 64, "folder": "stage"}}, **SOURCE)
    record = Record(tmp_path, tmp_path, spec)
    split = make_split(IN_DOMAIN, hospitals(MSD=20, RENJI=8, RMYY=14), FOLDS[1])
    resolved = IN_DOMAIN.resolve("tiny")
    write_json(tmp_path / "stage" / "spec.json", {"split": {"train": split.train, "validation": split.validation}})
    judged = {*split.test, *split.validation, "NIH/a"}
    assert _heldout(judged, record, resolved) == set(split.test)
    with pytest.raises(DgbenchError, match=r"7 cases of RENJI, the phantom has 8|not RENJI-fold1 of the cases"):
        _heldout(judged - {split.test[0]}, record, resolved)
    swapped = [split.test[0], *split.train[1:]]
    write_json(tmp_path / "stage" / "spec.json", {"split": {"train": swapped, "validation": split.validation}})
    with pytest.raises(DgbenchError, match="the held-out cases are not RENJI-fold1 of the cases of RENJI"):
        _heldout({split.train[0], split.test[1], *split.validation}, record, resolved)


def test_figures_find_the_slice_of_a_case_in_the_run_of_its_fold(tmp_path: Path) -> None:
    add_folds(tmp_path, "erm", (0.2,), (0.8,), (0.6,), (0.4,))
    board = load_board(tmp_path, IN_DOMAIN, None)
    for cell in board.cells[1:]:  # the first fold keeps no slices
        for case in cell.cases["case"]:
            write_bytes(slice_file(cell.run.path, case), b"a slice")
    shown, without = shown_cells(board)
    assert not without
    assert [len(cells) for cells in shown.values()] == [4]
    choices, unseen = overlays.choose(board, shown, None)
    assert unseen == 1
    assert [round(choice.dsc, 1) for choice in choices] == [0.8, 0.6, 0.4]
    assert centroids.gather(board)["erm", "RENJI"].seeds == (0,)


def test_a_page_does_not_call_a_case_of_a_fold_unseen(tmp_path: Path) -> None:
    """Networks of the other folds of its center were trained beside it, on scanners like its own."""
    add_folds(tmp_path / "runs", "erm", (0.5,), (0.6,), (0.7,), (0.8,))
    result = compile_runs(tmp_path / "runs", protocol=IN_DOMAIN)
    write_page(result, tmp_path / "page", root=tmp_path / "runs", protocol=IN_DOMAIN, cases=True)
    pages = list((tmp_path / "page" / "cases").rglob("*.html"))
    assert pages
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert "judged by networks that were trained on other folds of its center" in text
        assert "no method saw" not in text
