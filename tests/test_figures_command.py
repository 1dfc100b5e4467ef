"""`dgbench figures`: the files, the same bytes everywhere, and what cannot be drawn."""

import subprocess
import sys
from pathlib import Path

import pytest
from figure_runs import add_whole, board_of, text_of, write_table
from leaderboard_runs import PROTOCOL
from matplotlib.image import imread

from dgbench.cli import call
from dgbench.data.phantom import PhantomRecipe, case_name, lesion_type
from dgbench.leaderboard.figures import FIGURES, check_names, failures
from dgbench.leaderboard.figures.board import Options
from dgbench.store.slices import slice_file


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


def dgbench(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[str], list[str]]:
    """Exit code, lines on stdout, lines on stderr."""
    code = call(["figures", *map(str, arguments)])
    output = capsys.readouterr()
    return code, output.out.splitlines(), output.err.splitlines()


def test_all_figures_are_written_and_show_something(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(tmp_path / "runs", seeds=3)
    code, out, err = dgbench(capsys, "--runs", tmp_path / "runs", "--out", tmp_path / "out")
    assert code == 0
    assert err == []
    expected = [f"{name}.png" for name in FIGURES]
    expected.insert(expected.index("failures.png") + 1, "failures-2.png")
    assert out == [str(tmp_path / "out" / name) for name in expected]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(expected)
    for path in out:
        image = imread(path)[..., :3]
        height, width, _ = image.shape
        middle = image[height // 4 : 3 * height // 4, width // 8 : 7 * width // 8]
        assert (middle < 0.9).any(axis=-1).mean() > 0.01, f"{path} is blank"


@pytest.mark.slow
def test_equal_runs_give_equal_bytes_in_any_process_and_without_torch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_table(tmp_path / "runs")
    options = ["--runs", str(tmp_path / "runs"), "--out"]
    code, out, _ = dgbench(capsys, *options, tmp_path / "here")
    assert code == 0
    script = (
        "import sys\nfrom dgbench.cli import call\n"
        f"code = call(['figures', *{options!r}, {str(tmp_path / 'there')!r}])\n"
        "sys.exit(code or str({'torch', 'monai', 'mlflow'} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert answer.stderr.strip().splitlines()[-1:] == ["set()"]
    for path in map(Path, out):
        assert path.read_bytes() == (tmp_path / "there" / path.name).read_bytes()


@pytest.mark.parametrize("form", ["png", "pdf", "svg"])
def test_the_same_bytes_in_every_format(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Text of users is no formula, and nothing is dated."""
    starts = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}
    add_whole(tmp_path / "runs", "erm", "MSD", (0.5, 0.6), config={"a_$": "$x_1$ <&>"})
    add_whole(tmp_path / "runs", "erm", "MSD", (0.5, 0.6), config={"a_$": "^"})
    written = []
    for folder in ("one", "two"):
        options = ("--runs", tmp_path / "runs", "--only", "curves", "--format", form, "--out", tmp_path / folder)
        assert dgbench(capsys, *options)[0] == 0
        written.append((tmp_path / folder / f"curves.{form}").read_bytes())
    assert written[0] == written[1]
    assert written[0].startswith(starts[form])


def test_records_give_what_they_can_and_the_rest_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(tmp_path / "runs", keep=("validation", "cost"))
    code, out, err = dgbench(capsys, "--runs", tmp_path / "runs", "--out", tmp_path / "out")
    assert code == 0
    assert [Path(line).name for line in out] == ["centroids.png", "failures.png", "cost.png", "curves.png"]
    starts = [line.partition(", all 6 runs lack ")[0] for line in err]
    assert starts == [
        "failures: not drawn",
        "overlays: nothing to draw: not drawn",
        "embedding: nothing to draw: not drawn",
        "ranks: nothing to draw: whether ranks are stable cannot be told from 1 seed (0): 3 are the least",
    ]
    add_whole(tmp_path / "runs", "saml", "MSD", (0.1, 0.2), keep=("slices",))
    shown = dgbench(capsys, "--runs", tmp_path / "runs", "--out", tmp_path / "out", "--only", "overlays")
    (line,) = shown[2]
    assert "overlays: not drawn, 6 of 7 runs lack slices (row, center, seeds): " in line
    assert "erm MSD 0, RENJI 0, RMYY 0" in line
    drawing = failures.draw(board_of(tmp_path / "runs"), Options())
    assert "lack slices for the gallery" in text_of(drawing.sheets[0])


def test_lesion_types_come_from_the_recipe_of_the_preset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dgbench.cli.lesion_types import lesion_types
    from dgbench.data.phantom import fingerprint

    size = PROTOCOL.presets["bench"].phantom
    assert size is not None
    recipe = PhantomRecipe(size=size.size, cases=size.cases, seed=size.seed, strengths=size.shift)
    add_whole(tmp_path / "other", "erm", "MSD", (0.5,))
    add_whole(tmp_path / "own", "erm", "MSD", (0.5,), centers={"phantom": fingerprint(recipe)})
    names = [f"MSD/{case_name('MSD', index)}" for index in range(10)]
    other, own = (lesion_types(PROTOCOL, board_of(tmp_path / name)) for name in ("other", "own"))
    assert {other(name) for name in names} == {"unknown"}
    assert [own(name) for name in names] == [lesion_type(recipe, name) for name in names]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "overlay"], "--only: unknown figure 'overlay' — did you mean 'overlays'?"),
        (["--only", ","], "--only: no figure named — known: centroids, cost,"),
        (["--limit", "0"], "--limit 0: a DSC in points lies above 0 and at most at 100"),
        (["--limit", "nan"], "--limit nan: a DSC in points"),
        (["--by", "emr"], "--by 'emr': no finished run of this row — did you mean 'erm'?"),
        (["--preset", "bentch"], "unknown preset 'bentch' for protocol 'phantom' — did you mean 'bench'?"),
        (
            ["--preset", "demo"],
            "no finished run of protocol phantom, preset demo in setting F-Seg — start with: dgbench run",
        ),
        (["--protocol", "hippocampus"], "no finished run of protocol hippocampus"),
        (
            ["--only", "embedding"],
            "no figure was drawn — embedding: nothing to draw: not drawn, all 6 runs lack features",
        ),
        (["--only", "overlays"], "records keep no slices"),
        (["--only", "cost,curves"], "curves: nothing to draw: no run keeps a validation log (6 runs)"),
        (["--format", "gif"], "--format"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_table(tmp_path / "runs", keep=())
    code, out, err = dgbench(capsys, "--runs", tmp_path / "runs", "--out", tmp_path / "out", *arguments)
    assert code == 2
    assert out == []
    (line,) = err
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "out").exists()


def test_places_and_presets_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    _, _, (line,) = dgbench(capsys, "--runs", tmp_path / "file")
    assert line.endswith("is a file — name the folder of the runs")
    add_whole(tmp_path / "runs", "erm", "MSD", (0.5, 0.6))
    add_whole(tmp_path / "runs", "erm", "MSD", (0.5,), protocol={"preset": "demo", "ranked": False})
    code, _, (line,) = dgbench(capsys, "--runs", tmp_path / "runs", "--out", tmp_path / "out")
    assert code == 2
    assert line.endswith("runs of the presets bench, demo — name one with --preset")
    only = ("--only", "curves", "--preset", "demo", "--runs", tmp_path / "runs")
    _, _, (line,) = dgbench(capsys, *only, "--out", tmp_path / "file")
    assert "cannot be written" in line
    code, _, err = dgbench(capsys, *only, "--out", tmp_path / "out")
    assert (code, err) == (0, [])


def test_damaged_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = add_whole(tmp_path / "runs", "erm", "MSD", (0.5, 0.6))
    slice_file(folder, "MSD/MSD_0001").write_bytes(b"PK no slice")
    (folder / "tumor-fine" / "validation.jsonl").write_text('{"step": 3}\n')
    for name, message in (("overlays", "not a readable slice"), ("curves", "no center, dsc in its rows")):
        code, _, (line,) = dgbench(capsys, "--runs", tmp_path / "runs", "--out", tmp_path / "out", "--only", name)
        assert code == 2
        assert message in line


def test_pages_of_an_earlier_drawing_are_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pages of the figures that are drawn, in the format that is written; what is no further page stays."""
    add_whole(tmp_path / "runs", "erm", "MSD", (0.5, 0.6))
    (tmp_path / "out").mkdir()
    kept = ["centroids-2.png", "curves-2.pdf", "curves-2024.png", "curves-best.png"]
    for name in [*kept, "curves.png", "curves-2.png", "curves-3.png"]:
        (tmp_path / "out" / name).write_text("old")
    code, out, _ = dgbench(capsys, "--runs", tmp_path / "runs", "--out", tmp_path / "out", "--only", "curves")
    assert code == 0
    assert out == [str(tmp_path / "out" / "curves.png")]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([*kept, "curves.png"])
    assert all((tmp_path / "out" / name).read_text() == "old" for name in kept)


def test_a_figure_that_has_nothing_to_show_any_more_is_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_whole(tmp_path / "runs", "erm", "MSD", (0.5, 0.6))
    (tmp_path / "out").mkdir()
    for name in ("ranks.png", "cost.png"):
        (tmp_path / "out" / name).write_text("old")
    assert dgbench(capsys, "--runs", tmp_path / "runs", "--out", tmp_path / "out", "--only", "ranks,curves")[0] == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["cost.png", "curves.png"]


def test_names_are_kept_in_order() -> None:
    assert check_names("curves, overlays") == ("overlays", "curves")
    assert check_names(None) == tuple(FIGURES)


def test_the_help_names_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["figures", "--help"]) == 0
    assert ", ".join(FIGURES) in " ".join(capsys.readouterr().out.split())
