"""The figure of rank stability: nothing without three seeds, and what is drawn is what the table holds."""

from pathlib import Path

import pytest
from leaderboard_runs import CENTERS, PROTOCOL, add_run, cell

from dgbench.leaderboard.figures import ranks
from dgbench.leaderboard.figures.board import Board, NothingToDraw, Options, load_board


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


def board(root: Path, **methods: tuple[float, ...]) -> Board:
    """Methods with a mean DSC per seed, the same at every center, over two cases 0.1 apart."""
    for method, seeds in methods.items():
        for seed, dsc in enumerate(seeds):
            for center in CENTERS:
                add_run(root, method, center, seed, cases=cell(center, dsc - 0.05, dsc + 0.05))
    return load_board(root, PROTOCOL, None)


@pytest.mark.parametrize(("seeds", "words"), [((0.5,), r"1 seed \(0\)"), ((0.5, 0.6), r"2 seeds \(0, 1\)")])
def test_fewer_than_three_seeds_draw_nothing_and_say_so(tmp_path: Path, seeds: tuple[float, ...], words: str) -> None:
    with pytest.raises(NothingToDraw, match=f"cannot be told from {words}: 3 are the least"):
        ranks.draw(board(tmp_path, erm=seeds, randconv=seeds), Options())


def test_one_row_alone_has_no_rank_to_be_stable(tmp_path: Path) -> None:
    with pytest.raises(NothingToDraw, match="fewer than two complete rows"):
        ranks.draw(board(tmp_path, erm=(0.5, 0.6, 0.7)), Options())


def test_ranks_are_those_of_the_table_and_of_each_seed_alone(tmp_path: Path) -> None:
    drawn = board(tmp_path, erm=(0.5, 0.5, 0.9), randconv=(0.4, 0.6, 0.6), saml=(0.3, 0.6, 0.5))
    found = ranks.strips(drawn)
    assert [(strip.label, strip.rank) for strip in found] == [("erm", 1), ("randconv", 2), ("saml", 3)]
    assert [dict(strip.by_seed) for strip in found] == [{0: 1, 1: 3, 2: 1}, {0: 2, 1: 1, 2: 2}, {0: 3, 1: 1, 2: 3}]
    assert drawn.table.statistics is not None
    for strip in found:
        standing = drawn.table.statistics.standings[strip.label]
        assert (strip.interval, strip.tier) == (standing.rank_interval, standing.tier)


def test_the_axis_holds_every_interval_and_rows_without_a_rank_are_named(tmp_path: Path) -> None:
    drawn = board(tmp_path, erm=(0.5, 0.5, 0.9), randconv=(0.4, 0.6, 0.6), saml=(0.3, 0.6))
    (sheet,) = ranks.draw(drawn, Options()).sheets
    (axis,) = sheet.figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["erm", "randconv"]
    low, high = axis.get_xlim()
    assert low < 1
    assert high > max(strip.interval[1] for strip in ranks.strips(drawn))
    assert "not drawn, without a rank: saml" in "\n".join(text.get_text() for text in sheet.figure.texts)
