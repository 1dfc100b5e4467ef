"""What the compiled leaderboard looks like in each format, the reported numbers beside it, and the table of one run."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from leaderboard_runs import (
    EMPTY_PREDICTION,
    PROTOCOL,
    add_run,
    case_row,
    compiled,
    spec_of,
    terminal,
)

from dgbench.errors import DgbenchError
from dgbench.leaderboard.export import to_csv, to_json
from dgbench.leaderboard.published import load_published, published_names
from dgbench.leaderboard.records import View
from dgbench.leaderboard.run_table import run_settings, run_table
from dgbench.leaderboard.sheets import Sheet, to_markdown
from dgbench.leaderboard.tables import leaderboard_sheets
from dgbench.protocol import load_protocol, protocol_names


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.mark.parametrize("view", [View(), View(setting="C-Mask"), View(checkpoint="last-step"), View(policy="paper")])
def test_no_rendering_contains_nan(two_seeds: Path, view: View) -> None:
    add_run(two_seeds, "holes", "MSD", state="failed", reason="x")
    result = compiled(two_seeds, view=view)
    pages = [to_markdown(leaderboard_sheets(result)), to_csv(result), to_json(result), terminal(result)]
    assert not any(re.search(r"\bnan\b", page, re.IGNORECASE) for page in pages)
    header, *rows = csv.reader(line for line in to_csv(result).splitlines() if not line.startswith("#"))
    for row in rows:
        cells = dict(zip(header, row, strict=True))
        assert cells["dsc"] or cells["notes"]


def test_first_line_says_phantom_in_every_format(two_seeds: Path) -> None:
    result = compiled(two_seeds)
    banner = "PHANTOM DATA — not patient data"
    assert terminal(result).splitlines()[0].strip() == banner
    assert to_markdown(leaderboard_sheets(result)).splitlines()[0] == f"**{banner}**"
    assert to_csv(result).splitlines()[0] == f"# {banner}"
    assert next(iter(json.loads(to_json(result)).items())) == ("data", banner)
    assert banner in terminal(compiled(two_seeds / "nowhere"))
    assert "no runs yet" in terminal(compiled(two_seeds / "nowhere"))


def test_csv_and_json_hold_the_numbers(two_seeds: Path) -> None:
    result = compiled(two_seeds)
    lines = list(
        csv.DictReader(line for line in to_csv(result, load_published()).splitlines() if not line.startswith("#"))
    )
    (mean,) = [line for line in lines if line["method"] == "erm" and line["center"] == "mean"]
    assert (mean["status"], mean["rank"]) == ("ranked", "2")
    assert float(mean["dsc"]) == pytest.approx(140 / 3, abs=1e-3)
    reported = [line for line in lines if line["status"] == "reported"]
    assert len(reported) == 17 * 4
    rows = json.loads(to_json(result))["tables"][0]["rows"]
    assert rows[1]["mean"]["dsc"]["mean"] == pytest.approx(1.4 / 3)
    assert rows[1]["complete"] is True


def test_text_from_outside_cannot_break_a_page(tmp_path: Path) -> None:
    reason = "a|b `c` <script>alert(1)</script> [red]x[/red] \x1b[2Jz *bold*"
    add_run(tmp_path, "erm", "MSD", state="failed", reason=reason, extra=" --set 'note=a|b`c'")
    result = compiled(tmp_path)
    page = to_markdown(leaderboard_sheets(result))
    (line,) = [
        line for line in page.splitlines() if "alert" in line and "held-out" not in line and "dgbench run" in line
    ]
    unescaped = re.sub(r"\\.", "", line)
    assert unescaped.count("|") == 6
    assert "<" not in unescaped
    assert "``dgbench run" not in line.replace("`` dgbench", "")
    assert "\x1b" not in page + terminal(result) + to_csv(result)
    assert "[red]x[/red]" in terminal(result)


def test_markdown_golden() -> None:
    sheet = Sheet(
        heading=("One_two", "three"),
        columns=("method", "DSC", "command"),
        rows=(("erm_balanced", "46.7", "a | b"),),
        footer=("end",),
        numeric=frozenset({"DSC"}),
        code=frozenset({"command"}),
    )
    expected = (
        "**One\\_two**\n\n- three\n\n"
        "| method | DSC | command |\n| --- | ---: | --- |\n| erm\\_balanced | 46.7 | `a \\| b` |\n\n- end\n"
    )
    assert to_markdown([sheet]) == expected


def test_published_table_vi() -> None:
    assert published_names() == ["dual-task"]
    paper = load_published()
    rows = paper.counterpart("F-Seg")
    assert len(rows) == 17
    ours, bigaug = rows[-1], next(row for row in rows if row.method == "BigAug")
    assert (ours.mean, ours.centers["MSD"]) == ((46.11, 11.88, 22.79), (36.85, 18.06, 28.6))
    assert ours.cost == (3.80, 945.44, 10.52)
    assert "misprint" in (bigaug.note or "")
    (mask,) = paper.counterpart("C-Mask")
    assert (mask.mean.dsc, "42.19" in (mask.note or "")) == (42.73, True)
    assert paper.counterpart("X-Seg") == ()
    beside = {name for name in protocol_names() if paper.beside(load_protocol(name)) is not None}
    assert beside == set(protocol_names()) - {"hippocampus", "phantom-neutral"}
    with pytest.raises(DgbenchError, match="did you mean 'dual-task'"):
        load_published("dualtask")


def test_published_means_agree_with_their_centers_except_the_known_misprint() -> None:
    off = []
    for row in load_published().rows:
        for position in range(3):
            mean = sum(values[position] for values in row.centers.values()) / 3
            if abs(mean - row.mean[position]) > 0.0101:
                off.append((row.table, row.setting, position))
    assert off == [("III", "C-Mask", 0)]


def test_reported_rows_stand_apart_from_the_ranking(two_seeds: Path) -> None:
    result = compiled(two_seeds)
    sheets = leaderboard_sheets(result, load_published())
    assert sheets[:-1] == leaderboard_sheets(result)
    assert sheets[-1].heading[0].startswith("REPORTED")
    assert "rank" not in sheets[-1].columns
    assert sheets[-1].columns[0] == "reported in"
    assert {row[0] for row in sheets[-1].rows} == {"Table VI"}
    assert to_markdown(sheets).startswith("**PHANTOM DATA")


def run_cases() -> pd.DataFrame:
    rows = [
        *(case_row("RENJI", index, value) for index, value in enumerate((0.4, 0.6))),
        case_row("RENJI", 2, 0.0, **EMPTY_PREDICTION, roi="fallback: pancreas"),
        case_row("RENJI", 0, 0.9, setting="P-Fine", stage="pancreas-fine"),
        case_row("RENJI", 0, 0.7, setting="C-Mask", stage="tumor-coarse"),
        case_row("RENJI", 0, 0.1, threshold=0.1),
        case_row("RENJI", 0, 0.1, checkpoint="last-step"),
        case_row("MSD", 0, 0.5, role="source-val"),
        case_row("MSD", 1, 0.7, role="source-val"),
        case_row("RMYY", 0, 0.8, role="source-val"),
    ]
    return pd.DataFrame(rows)


def test_run_table() -> None:
    sheet = run_table(run_cases(), spec=spec_of("erm", "RENJI", 0), protocol=PROTOCOL)
    assert sheet.heading[0] == "PHANTOM DATA — not patient data"
    assert "erm, held-out RENJI, seed 0" in sheet.heading[1]
    assert sheet.rows == (
        ("pancreas, fine", "P-Fine", "90.0", "1.0", "2.0", "0.5", "1", "not evaluated", ""),
        ("tumor, fine", "F-Seg", "33.3", "16.7", "40.0", "35.0", "3", "70.0", "empty predictions 1, fallback ROI 1"),
        ("tumor, coarse; oracle ROI", "C-Mask", "70.0", "3.0", "6.0", "1.5", "1", "not evaluated", ""),
    )
    others = run_cases().query("checkpoint != 'source-val' or threshold != 0.5")
    with pytest.raises(DgbenchError, match=r"no rows for threshold 0\.5, checkpoint source-val"):
        run_table(others, spec=spec_of("erm", "RENJI", 0), protocol=PROTOCOL)


def test_leaderboard_never_imports_torch() -> None:
    modules = ("compile", "tables", "export", "published", "records", "policies", "overlay")
    imports = "; ".join(f"import dgbench.leaderboard.{name}" for name in modules)
    code = f"import sys; {imports}; import pandas; print(*sorted({{'torch', 'monai', 'mlflow'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_settings_come_from_the_stages_of_the_protocol() -> None:
    assert list(run_settings(PROTOCOL)) == ["P-Coarse", "P-Fine", "C-Seg", "F-Seg", "C-Mask", "F-Mask"]
    alone = {name: stage for name, stage in PROTOCOL.stages.items() if name == "pancreas-coarse"}
    stage = alone["pancreas-coarse"].model_copy(update={"code": "X", "recipe": None})
    assert run_settings(PROTOCOL.model_copy(update={"stages": {"organ-whole": stage}})) == {
        "X-Seg": "organ, whole",
        "X-Mask": "organ, whole; oracle ROI",
    }
