"""Figures inside the page, drawn from run folders as ``dgbench figures`` draws them."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from dgbench.errors import DgbenchError
from dgbench.leaderboard.figures import FIGURES, draw_figures
from dgbench.leaderboard.figures.board import Board, Options, board_of
from dgbench.leaderboard.page.folder import Site, file_name
from dgbench.leaderboard.results import Compiled, Row, Table
from dgbench.leaderboard.sheets import printable
from dgbench.protocol import Protocol

LARGEST = 200
"""Most counted runs whose figures are drawn without being asked for."""
OF_ONE_ROW = ("overlays", "centroids", "curves")
"""The figures that say something of a single row."""

Choose = Callable[[Board], Options]


class Picture(NamedTuple):
    """A figure's page: its file within the page, and what it shows."""

    file: str
    words: str


class Gallery(NamedTuple):
    """The figures of a table or of one of its rows, and why others are not there."""

    pictures: tuple[Picture, ...]
    notes: tuple[str, ...]


class Painter(NamedTuple):
    """What figures are drawn from, and into which page; ``choose`` gives the options of ``dgbench figures`` for a board."""

    compiled: Compiled
    root: Path
    protocol: Protocol
    site: Site
    choose: Choose

    def of_table(self, table: Table) -> Gallery:
        """All figures of a table."""
        return self._draw(table, FIGURES, f"figures/{self.compiled.tables.index(table)}", table)

    def of_row(self, table: Table, row: Row) -> Gallery:
        """The figures of one row alone."""
        place = f"figures/{self.compiled.tables.index(table)}/{file_name(row.label)}"
        return self._draw(table.only(row), OF_ONE_ROW, place, table)

    def _draw(self, table: Table, names: Iterable[str], place: str, whole: Table) -> Gallery:
        rows = tuple(replace(row, label=printable(row.label)) for row in table.rows)
        board = board_of(self.compiled, replace(table, rows=rows), self.root, self.protocol, whole=whole)
        if not board.cells:
            return Gallery((), tuple(board.not_drawn()) or ("no figures: no finished run",))
        pictures: list[Picture] = []
        notes: list[str] = []
        folder = self.site.folder / place
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            try:
                (written,) = draw_figures(board, [name], folder, "png", self.choose(board))
            except DgbenchError as error:  # a damaged run: the table stands without this figure
                notes.append(f"{name}: {error}".replace(f"{self.root}/", ""))
                continue
            for path in written.files:
                self.site.place(file := f"{place}/{path.name}")
                pictures.append(Picture(file, f"{name}: {FIGURES[name]}"))
            notes += [f"{name}: {note}" for note in written.notes]
        return Gallery(tuple(pictures), tuple(notes))


def counted_runs(compiled: Compiled) -> int:
    """How many runs the figures would be drawn from."""
    return sum(
        len(run.folders)
        for table in compiled.tables
        for row in table.rows
        for center in row.centers.values()
        for run in center.runs.values()
    )
