"""The page as files: what it says, that it is whole and closed, that text stays text, and that its folder is safe."""

import re
import zipfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from cli_calls import mistake
from hatchling.builders.wheel import WheelBuilder
from leaderboard_runs import (
    CENTERS,
    PROTOCOL,
    add_method,
    add_run,
    case_row,
    cell,
    compiled,
    only_table,
    write_two_seeds,
)
from page_runs import REASON, TITLE, add_slice, write_board
from prediction_sets import cube, of_arrays

from dgbench.cli import call
from dgbench.leaderboard.figures import FIGURES
from dgbench.leaderboard.page.board import board
from dgbench.leaderboard.page.card import render_markdown
from dgbench.leaderboard.page.folder import MARKER
from dgbench.leaderboard.page.marks import Place, Scale, interval_mark, rank_strip, seeds_mark
from dgbench.leaderboard.page.methods import method_pages
from dgbench.leaderboard.page.site import POLICY, Written, write_page
from dgbench.leaderboard.published import load_published
from dgbench.leaderboard.records import View
from dgbench.leaderboard.results import seed_means

ROOT = Path(__file__).parent.parent
VOID = {"meta", "link", "input", "img", "br", "hr"}


class Page(HTMLParser):
    """A parsed page that insists on balanced tags."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.open, self.tags, self.words = path, [], [], []
        self.ids: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open, f"{path}: not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"{self.path}: stray </{tag}>"

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, Any]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        yield write_board(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def page(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "new" / "folder"
    written = write_page(compiled(runs), out, root=runs, protocol=PROTOCOL, published=load_published())
    assert written == Written(index=out / "index.html", methods=7, cases="18 case pages")
    return out


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


def html(page: Path) -> list[Path]:
    return sorted(page.rglob("*.html"))


def test_every_page_is_whole_closed_and_says_phantom_first(page: Path) -> None:
    assert len(html(page)) == 1 + 7 + 18
    for path in html(page):
        parsed = Page(path)
        assert len(parsed.ids) == len(set(parsed.ids))
        body = path.read_text(encoding="utf-8").partition("<body>")[2]
        assert body.strip().startswith('<p class="banner phantom">PHANTOM DATA — not patient data</p>')
        policies = [meta["content"] for meta in parsed.all("meta") if "http-equiv" in meta]
        assert policies == [POLICY]
        assert "unsafe" not in policies[0]
        assert policies[0].startswith("default-src 'none';")


def test_nothing_is_inline_or_from_elsewhere_and_every_link_leads_to_a_file(page: Path) -> None:
    reached = {MARKER}
    for path in html(page):
        parsed = Page(path)
        for tag, attributes in parsed.tags:
            assert not {name for name in attributes if name.startswith("on") or name == "style"}, (path, attributes)
            assert tag not in ("style", "iframe", "object", "embed", "form", "base")
            for name in ("href", "src"):
                target = attributes.get(name)
                if target is None or target == "data:,":
                    continue
                if re.match(r"https?:", target):
                    assert tag == "a", f"{path}: {tag} loads {target}"
                    continue
                place, _, anchor = target.partition("#")
                file = (path.parent / place).resolve() if place else path
                assert file.is_file(), f"{path}: {target}"
                assert not anchor or anchor in Page(file).ids
                reached.add(file.relative_to(page.resolve()).as_posix() if place else "index.html")
        assert all("src" in script for script in parsed.all("script"))
    css = (page / "static/page.css").read_text()
    assert "url(" not in css
    assert "@import" not in css
    assert reached | {"index.html"} == {path.relative_to(page).as_posix() for path in page.rglob("*") if path.is_file()}


def test_text_of_run_folders_stays_text(page: Path) -> None:
    for path in html(page):
        parsed = Page(path)
        raw = path.read_text(encoding="utf-8")
        assert "<script>" not in raw
        assert "<b>" not in raw
        assert "\x1b" not in raw
        assert {image.get("alt", "")[:5] for image in parsed.all("img")} <= {"Slice"}
    visible = REASON.replace("\x1b", " ")
    assert " ".join(visible.split()) in Page(page / "index.html").text
    assert TITLE in Page(page / "methods/foreign.one.html").text


def test_index_says_what_the_table_depends_on(page: Path) -> None:
    text = Page(page / "index.html").text
    for fact in (
        *("Protocol phantom version 1", f"Content hash {'c0ffee00' * 8}", "Preset bench", "Seeds 0, 1, 2, 3, 4"),
        *("Missing cells 28", "Selection rule source-val — ", "Threshold rule 0.5 for all", "Policy default: an empty"),
        *(
            "dgbench 0.1.0.dev0",
            "Evidence: claim — five seeds or more",
            "One or two seeds are smoke",
            "these 3 centers only",
        ),
        *("REPORTED in the literature on patient data", "control row with 3× the draws", "unconverged", "1/5 seeds"),
        *(
            "dgbench run --method cutout --protocol phantom --preset bench --heldout RMYY --seed 4",
            "failed",
            "not run",
            "tier 1",
        ),
    ):
        assert fact in text, fact


@pytest.mark.parametrize(("seeds", "grade"), [(1, "smoke"), (2, "smoke"), (3, "row"), (5, "claim")])
def test_only_what_the_seeds_permit_is_shown(tmp_path: Path, seeds: int, grade: str) -> None:
    write_board(tmp_path, seeds=seeds, slices=False)
    table = only_table(tmp_path)
    assert table.statistics is not None
    assert table.statistics.evidence == grade
    shown = board(table)
    place = {column.header: index for index, column in enumerate(shown.columns)}
    best = next(line for line in shown.lines if line.label == "dualtask")
    interval = best.cells[place["interval"]].mark
    assert interval is not None
    assert ("no interval" in interval) == (grade == "smoke")
    assert ("[" in best.cells[place["DSC − erm"]].text) == (grade != "smoke")
    assert (best.cells[place["p (Holm)"]].key is not None) == (grade == "claim")
    assert (best.cells[place["P(best)"]].key is not None) == (grade == "claim")
    for header in ("rank interval", "tier"):
        assert (best.cells[place[header]].key is None) == (grade == "smoke")
    assert (shown.strip is None) == (grade == "smoke")
    assert best.cells[place["rank"]].text == ("1 (smoke)" if grade == "smoke" else "1")


def test_main_table_has_a_cell_for_every_column_and_the_numbers_of_the_rows(runs: Path, page: Path) -> None:
    table = only_table(runs)
    shown = board(table)
    assert sum(span for _, span in shown.groups) == len(shown.columns)
    assert all(len(line.cells) == len(shown.columns) for line in shown.lines)
    assert [line.label for line in shown.lines] == [row.label for row in table.rows]
    place = {column.header: index for index, column in enumerate(shown.columns)}
    for row, line in zip(table.rows, shown.lines, strict=True):
        assert line.complete == row.complete
        if row.complete:
            assert line.cells[place["mean DSC"]].key == row.mean["dsc"].mean
            means = seed_means(row)
            assert sum(means.values()) / len(means) == pytest.approx(100 * row.mean["dsc"].mean)
        run = [seed for seed in row.seeds if all(seed in row.centers[center].runs for center in CENTERS)]
        assert line.cells[place["seeds run"]].text == (", ".join(map(str, run)) or "–")
        for center in CENTERS:
            expected = row.centers[center].scores["dsc"].mean if row.centers[center].scores else None
            assert line.cells[place[center]].key == expected
    assert {line.label: line.stamps for line in shown.lines if line.stamps} == {
        "mixstyle": "unconverged",
        "erm_long": "control row with 3× the draws, not ranked",
    }
    headers = [th for th in Page(page / "index.html").all("th") if th.get("scope") == "col"]
    assert {"name", "number", "notes"} <= {header.get("class") for header in headers}


def test_holes_are_never_a_number(tmp_path: Path) -> None:
    write_two_seeds(tmp_path)
    add_run(tmp_path, "hog", "MSD", 0, cases=cell("MSD", 0.9, 0.9, 0.9))
    (line,) = [line for line in board(only_table(tmp_path)).lines if line.label == "hog"]
    numbers = [one.text for one in line.cells if isinstance(one.key, float)]
    assert numbers == []
    assert "incomplete" in [one.text for one in line.cells]


def test_method_page(page: Path) -> None:
    parsed = Page(page / "methods/dualtask.html")
    for words in (
        *(
            "Dual-task framework",
            "Results by held-out center",
            "Mean DSC by seed",
            "How to reproduce",
            "Difference to erm",
        ),
        "dgbench run --method dualtask --protocol phantom --heldout MSD --preset bench --seed 4",
        "phantom/MSD/dualtask/seed4-",
    ):
        assert words in parsed.text
    links = {link["href"] for link in parsed.all("a")}
    assert "../cases/RMYY/RMYY_0005.html" in links
    holed = Page(page / "methods/cutout.html").text
    assert "incomplete, not ranked" in holed
    assert "out of <b>memory</b>" in holed
    foreign = Page(page / "methods/foreign.one.html").text
    assert "No card: the method is not installed here." in foreign


def test_case_page_shows_overlays_where_there_are_slices(page: Path) -> None:
    with_slice, without = Page(page / "cases/MSD/MSD_0000.html"), Page(page / "cases/RENJI/RENJI_0003.html")
    (image,) = with_slice.all("img")
    picture = page / "cases/MSD" / image["src"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "erm, seed 0" in image["alt"]
    assert "No slice of this case in the runs of: dualtask" in with_slice.text
    assert not without.all("img")
    assert "the run folders hold no slices of this case" in without.text
    assert [link["href"] for link in without.all("a")] == [
        "../../index.html",
        "../../cases/RENJI/RENJI_0002.html",
        "../../cases/RENJI/RENJI_0004.html",
    ]
    assert "no result" in without.text


def test_every_page_of_a_view_says_which_it_is(tmp_path: Path) -> None:
    """An oracle is called one on each; pictures are of the official view alone."""
    cases = [case_row("MSD", 0, 0.5, setting=setting) for setting in ("F-Seg", "F-Mask")]
    add_slice(add_run(tmp_path / "runs", "erm", "MSD", cases=cases), "MSD/MSD_0000")
    for view in (View(setting="F-Mask", policy="paper"), View(policy="paper")):
        masked = view.setting == "F-Mask"
        out = tmp_path / view.setting
        write_page(compiled(tmp_path / "runs", view=view), out, root=tmp_path / "runs", protocol=PROTOCOL)
        facts = (f"Setting {view.setting}", "Selection rule source-val", "Threshold rule 0.5 for all", "Policy paper:")
        for name in ("index.html", "methods/erm.html", "cases/MSD/MSD_0000.html"):
            text = Page(out / name).text
            assert not [fact for fact in facts if fact not in text], name
            assert ("— an oracle: the label places the ROI" in text) == masked, name
        assert ("No overlays: pictures are kept of the official view only: setting F-Seg" in text) == masked
        assert bool(list(out.rglob("*.png"))) == (not masked)


def test_tables_of_one_page_are_told_apart(tmp_path: Path) -> None:
    """By preset, or by their data; and cases of one name in two of them may be two scans."""
    for seed, told in enumerate(({"preset": "demo", "ranked": False}, {}, {})):
        data = {"centers": {"phantom": "0badcafe" * 8}} if seed == 2 else {}
        folder = add_run(tmp_path / "runs", "erm", "MSD", seed, cases=cell("MSD", 0.5), protocol=told, **data)
        add_slice(folder, "MSD/MSD_0000")
    bench = "Preset bench, version 1 (c0ffee00), dgbench 0.1.0.dev0"
    titles = [f"{bench}, data phantom {data}" for data in ("fee1dead", "0badcafe")]
    drawn = [f"erm, {title}, seed {seed}" for seed, title in enumerate(titles, start=1)]
    for preset, labels in (("demo", ["erm, seed 0"]), ("bench", drawn), (None, ["erm, preset demo, seed 0", *drawn])):
        out = tmp_path / str(preset)
        write_page(compiled(tmp_path / "runs", preset=preset), out, root=tmp_path / "runs", protocol=PROTOCOL)
        index, case = Page(out / "index.html").text, Page(out / "cases/MSD/MSD_0000.html")
        shown = (image["alt"].partition("the reference and of ")[2].partition(";")[0] for image in case.all("img"))
        assert sorted(shown) == sorted(labels)
        assert [title in index and title in case.text for title in titles] == [preset != "demo"] * 2
        assert ("Scans each table's own" in case.text) == (preset != "demo")


def test_case_pages_have_the_seeds_of_every_row(tmp_path: Path) -> None:
    write_two_seeds(tmp_path / "runs")
    modified = {"protocol": {"modified": True, "ranked": False}, "extra": " --set preset.width=16"}
    add_run(tmp_path / "runs", "hog", "MSD", 7, cases=cell("MSD", 0.5, 0.5, 0.5), **modified)
    write_page(compiled(tmp_path / "runs"), tmp_path / "page", root=tmp_path / "runs", protocol=PROTOCOL)
    here, elsewhere = (Page(tmp_path / f"page/cases/{name}.html").text for name in ("MSD/MSD_0000", "RMYY/RMYY_0000"))
    for text in (here, elsewhere):
        assert "method seed 0 seed 1 seed 7" in text
    assert "erm 20.0 20.0 –" in here
    assert "hog (preset.width=16) – – 50.0" in here
    assert "hog (preset.width=16) – – no result" in elsewhere


def test_rows_without_a_grade_show_none_and_name_the_baseline_of_the_table(tmp_path: Path) -> None:
    """Five seeds let the table claim something, but nothing of a modified row; a tuned row that is only compared has no claim."""
    tuned = {"trials": 10, "study": "a" * 64}
    for method in ("erm", "hog"):
        add_method(tmp_path, method, 0.0, 5)
        add_method(tmp_path, method, 0.1, 5, tuned=tuned)
    modified = {"protocol": {"modified": True, "ranked": False}, "extra": " --set preset.width=16"}
    add_method(tmp_path, "hog", 0.2, 1, **modified)
    result = compiled(tmp_path)
    (table,) = result.tables
    assert table.baseline == "erm (default)"
    assert {table.only(row).baseline for row in table.rows} == {"erm (default)"}
    pages = {page.name: page for page in method_pages(result, {})}
    shown = {row.title.partition(" — ")[0]: row for page in pages.values() for row in page.rows}
    assert {label: row.facts.get("Evidence") for label, row in shown.items()} == {
        "erm (default)": "claim",
        "erm (tuned(10))": "row",
        "hog (default)": "claim",
        "hog (tuned(10))": "claim",
        "hog (preset.width=16)": None,
    }
    assert "DSC − erm (default)" in shown["hog (preset.width=16)"].centers.columns


def test_the_page_of_an_imported_set_says_that_it_is_not_drawn(tmp_path: Path) -> None:
    of_arrays(tmp_path / "runs", cube("MSD/a", 1))
    result = compiled(tmp_path / "runs")
    out = tmp_path / "page"
    write_page(result, out, root=tmp_path / "runs", protocol=PROTOCOL, cases=False, figures=True)
    text = Page(out / "methods/closed.html").text
    assert "imported prediction sets are not drawn: closed" in text
    assert "no finished run" not in text


def test_the_same_runs_give_the_same_bytes_and_pictures_are_not_drawn_again(
    runs: Path, page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.relative_to(page): path.read_bytes() for path in page.rglob("*") if path.is_file()}
    monkeypatch.setattr("dgbench.leaderboard.page.cases.draw_overlays", lambda *_, **__: pytest.fail("drawn again"))
    write_page(compiled(runs), page, root=runs, protocol=PROTOCOL, published=load_published())
    assert before == {path.relative_to(page): path.read_bytes() for path in page.rglob("*") if path.is_file()}
    assert [path.name for path in page.parent.iterdir()] == [page.name]


def test_many_cases_are_left_out_with_one_line(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dgbench.leaderboard.page.cases.LARGEST", 100)
    result = compiled(runs)
    written = write_page(result, tmp_path / "page", root=runs, protocol=PROTOCOL)
    assert written.cases == "no case pages: 126 cases × rows are more than 100 (--cases writes them all the same)"
    assert written.cases in Page(tmp_path / "page" / "index.html").text
    assert not (tmp_path / "page" / "cases").exists()
    assert write_page(result, tmp_path / "page", root=runs, protocol=PROTOCOL, cases=True).cases == "18 case pages"
    assert "--no-cases" in write_page(result, tmp_path / "page", root=runs, protocol=PROTOCOL, cases=False).cases


def test_page_without_runs(tmp_path: Path) -> None:
    write_page(compiled(tmp_path / "none"), tmp_path / "page", root=tmp_path / "none", protocol=PROTOCOL)
    assert "No runs yet — start with: dgbench run --protocol phantom" in Page(tmp_path / "page/index.html").text


def test_unreadable_folders_are_listed(tmp_path: Path) -> None:
    write_two_seeds(tmp_path / "runs")
    broken = add_run(tmp_path / "runs", "hog", "MSD", cases=cell("MSD", 0.5))
    (broken / "spec.json").write_text("{}")
    write_page(compiled(tmp_path / "runs"), tmp_path / "page", root=tmp_path / "runs", protocol=PROTOCOL)
    assert "cannot be read and are not counted (1)" in Page(tmp_path / "page/index.html").text


def test_figures_stand_in_the_page(runs: Path, tmp_path: Path) -> None:
    """Of each table and of each row, with a word for every figure that is not there."""
    out = tmp_path / "page"
    write_page(compiled(runs), out, root=runs, protocol=PROTOCOL, cases=False, figures=True)
    files = {path.relative_to(out).as_posix() for path in out.rglob("*.png")}
    assert {"figures/0/ranks.png", "figures/0/centroids.png", "figures/0/erm/centroids.png"} <= files
    shown = set()
    for page in (out / "index.html", *(out / "methods").glob("*.html")):
        for image in Page(page).all("img"):
            assert image["alt"]
            shown.add((page.parent / image["src"]).resolve().relative_to(out.resolve()).as_posix())
    assert shown == files
    text = (out / "index.html").read_text()
    for name in FIGURES:
        assert f"{name}: " in text
    write_page(compiled(runs), out, root=runs, protocol=PROTOCOL, cases=False)
    assert not list(out.rglob("*.png"))
    assert "no figures: left out with --no-figures" in (out / "index.html").read_text()


def test_very_many_runs_have_figures_only_when_asked(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dgbench.leaderboard.page.site.LARGEST", 3)
    out = tmp_path / "page"
    write_page(compiled(runs), out, root=runs, protocol=PROTOCOL, cases=False, figures=None)
    assert "are more than 3 (--figures draws them all the same)" in (out / "index.html").read_text()


def test_command(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["leaderboard", f"--runs={runs}", "--preset=bench"]
    assert mistake(capsys, [*base, "--format=html"]).endswith("name the folder of the page with --out DIR")
    assert "belongs to --format html" in mistake(capsys, [*base, f"--out={tmp_path}"])
    assert "belongs to --format html" in mistake(capsys, [*base, "--format=md", "--no-cases"])
    assert call([*base, "--format=html", f"--out={tmp_path / 'page'}", "--no-cases"]) == 0
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert said.startswith(f"{tmp_path / 'page' / 'index.html'}: 1 table, 7 method pages, no case pages")


def test_marks() -> None:
    assert Scale.around([]) is None
    assert Scale.around([48.12]) == Scale(48.0, 48.5)
    assert Scale.around([48.0, 48.0]) == Scale(48.0, 48.5), "a scale from 48 to 48 says nothing"
    scale = Scale.around([41.2, 58.9])
    assert scale is not None
    assert scale.low <= 41.2 < 58.9 <= scale.high
    assert scale.x(scale.low) < scale.x(50) < scale.x(scale.high)
    with_zero = Scale.around([2.0, 5.0], include=(0.0,))
    assert with_zero is not None
    assert with_zero.low <= 0
    equal = Scale.around([3.0])
    assert equal is not None
    assert seeds_mark({0: 3.0}, equal).count("<circle") == 1
    assert "above zero" in interval_mark(2.0, (1.0, 3.0), with_zero)
    assert 'class="open"' in interval_mark(0.5, (-1.0, 3.0), with_zero)
    assert "below zero" in interval_mark(-2.0, (-3.0, -1.0), with_zero)
    strip = rank_strip(
        [Place(label="<a>", rank=1, interval=(1, 2), tier=1), Place(label="b", rank=2, interval=(1, 2), tier=None)]
    )
    assert "&lt;a&gt;" in strip
    assert strip.count("<circle") == 2


def test_card_is_safe() -> None:
    text = (
        "# name\n\nsome <script>alert(1)</script> [bad](javascript:alert(1)) [page](../x.md) [paper](https://example.org/a?b&c)\n\n"
        "![picture](https://example.org/x.png)\n\n| a | b |\n|---|---|\n| 1 | `<i>` |\n\n## Part\n\n<img src=x onerror=alert(1)>\n"
    )
    made = render_markdown(text, title="name")
    assert "<h3>Part</h3>" in made, "the card stands below a heading of the second level"
    assert "<script" not in made
    assert "<img" not in made
    assert re.findall(r'href="([^"]*)"', made) == ["https://example.org/a?b&amp;c", "https://example.org/x.png"]
    assert "javascript:" not in "".join(re.findall(r"<[^>]*>", made))
    assert "page" in made
    assert '<div class="scroll"' in made
    assert "<code>&lt;i&gt;</code>" in made
    bare = render_markdown("| | |\n|---|---|\n| 1 | 2 |\n\n| a | |\n|---|---|\n| 1 | 2 |\n")
    assert bare.count("<thead>") == 1
    assert "<th></th>" not in bare


@pytest.mark.slow
def test_wheel_has_templates_and_static_files(tmp_path: Path) -> None:
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    names = set(zipfile.ZipFile(wheel).namelist())
    here = ROOT / "dgbench/leaderboard/page"
    shipped = {
        path.relative_to(ROOT).as_posix() for room in ("templates", "static") for path in (here / room).iterdir()
    }
    assert len(shipped) == 7
    assert shipped <= names
