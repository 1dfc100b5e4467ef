"""Tables in terminals and pipes: a name or a number is never broken, and nothing is cut off."""

import re

import pytest
from rich.console import Console

from dgbench.cli.console import show
from dgbench.cli.options import table_of
from dgbench.leaderboard.sheets import Sheet, to_rich

NAMES = ("erm", "dualtask_smooth", "a_method_with_a_rather_long_name")
METRICS = ("DSC MSD", "DSC RENJI", "DSC RMYY", "mean DSC", "worst center", "NSD", "ASD", "HD95", "centroid", "P(best)")


def sheet() -> Sheet:
    """Three rows; every number of it occurs once."""
    rows = tuple(
        (str(row + 1), name, *(f"{10 * row + column + 10}.{column} ± 0.{row}" for column in range(len(METRICS))))
        for row, name in enumerate(NAMES)
    )
    columns = ("rank", "method", *METRICS)
    return Sheet(heading=("Title",), columns=columns, rows=rows, numeric=frozenset(columns) - {"method"})


def rendered(width: int) -> list[str]:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(to_rich([sheet()], width))
    return capture.get().splitlines()


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_no_name_no_number_and_no_header_is_broken_or_cut(width: int) -> None:
    lines = rendered(width)
    assert max(map(len, lines)) <= width
    words = [word for line in lines for word in line.split()]
    for cell in (cell for row in sheet().rows for cell in row):
        assert set(cell.split()) <= set(words), cell
    assert {word for column in sheet().columns for word in column.split()} <= set(words)


def test_columns_that_do_not_fit_follow_below_beside_the_names_again() -> None:
    blocks = [sum(name in line for line in rendered(width)) for width in (60, 80, 200) for name in NAMES[1:]]
    assert blocks[4:] == [1, 1], "all columns side by side"
    assert blocks[0] == blocks[1] > blocks[2] == blocks[3] > 1


def test_a_pipe_takes_the_width_it_needs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    show(lambda width: to_rich([sheet()], width))
    row = next(line for line in capsys.readouterr().out.splitlines() if NAMES[1] in line)
    assert row.split() == " ".join(sheet().rows[1]).split()


def test_a_terminal_gets_its_own_width(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")
    seen: list[int | None] = []
    show(lambda width: seen.append(width) or to_rich([sheet()], width))  # type: ignore[func-returns-value]
    assert seen == [60]
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) == 60


def test_names_in_plain_lists_are_never_broken() -> None:
    console = Console(width=60, color_system=None)
    with console.capture() as capture:
        console.print(table_of([{"method": name, "title": "word " * 30, "note": "other " * 30} for name in NAMES]))
    assert set(NAMES) <= set(capture.get().split())
