"""Figures of the dual-task paper and of this benchmark, made from run folders alone: ``dgbench figures``.

A figure that no run folder has anything for is named with its reason; runs that a figure cannot show (records without slices or
features) are named on it. Equal run folders give equal bytes under one release of matplotlib.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import NamedTuple

from dgbench.atomic import unwritable
from dgbench.errors import DgbenchError, suggest
from dgbench.leaderboard.figures.board import Board, Drawing, NothingToDraw, Options
from dgbench.leaderboard.figures.style import Form, plain_settings, save

FIGURES: Mapping[str, str] = {
    "overlays": "best, median and worst case of each center, a column per method",
    "embedding": "t-SNE of pooled tumor and normal features per method",
    "centroids": "distances between tumor centroids per method and center",
    "failures": "cases below a DSC limit, with their lesion type",
    "cost": "mean DSC against parameters, GFLOPs and training time, with the Pareto front",
    "ranks": "ranks with their intervals and in each seed, from three seeds up",
    "curves": "validation DSC over training steps",
}
"""Name of a figure, module of this package, and what it shows."""


class Written(NamedTuple):
    """One figure: the files of its pages, and what is not on them; no files where nothing could be drawn."""

    name: str
    files: tuple[Path, ...]
    notes: tuple[str, ...]


def check_names(only: str | None) -> tuple[str, ...]:
    """The figures of a comma-separated list, in the order of :data:`FIGURES`; all for None.

    Raises:
        DgbenchError: an unknown figure, or an empty list.
    """
    if only is None:
        return tuple(FIGURES)
    names = [name.strip() for name in only.split(",") if name.strip()]
    for name in names:
        if name not in FIGURES:
            raise DgbenchError(f"--only: unknown figure {name!r}{suggest(name, FIGURES)}")
    if not names:
        raise DgbenchError(f"--only: no figure named{suggest('', FIGURES)}")
    return tuple(name for name in FIGURES if name in names)


def draw_figures(board: Board, names: Iterable[str], folder: Path, form: Form, options: Options) -> Iterator[Written]:
    """Draw the figures ``names`` of ``board`` into ``folder`` as ``<name>.<form>``, further pages as ``<name>-2.<form>``; pages beyond
    them, and all of a figure that has nothing to show, which an earlier drawing left, are removed.

    Raises:
        DgbenchError: a file of a run is damaged, or a figure cannot be written.
    """
    for name in names:
        draw: Callable[[Board, Options], Drawing] = import_module(f"{__name__}.{name}").draw
        with plain_settings():
            try:
                drawing = draw(board, options)
            except NothingToDraw as error:
                _remove_pages(folder, name, form, first=1)
                yield Written(name, (), (f"nothing to draw: {error}",))
                continue
            files = []
            for number, sheet in enumerate(drawing.sheets, start=1):
                path = _page(folder, name, form, number)
                save(sheet.figure, path, form, board.heading(FIGURES[name])[0])
                files.append(path)
            _remove_pages(folder, name, form, first=len(files) + 1)
        yield Written(name, tuple(files), tuple(drawing.undrawn))


def _page(folder: Path, name: str, form: Form, number: int) -> Path:
    return folder / (f"{name}.{form}" if number == 1 else f"{name}-{number}.{form}")


def _remove_pages(folder: Path, name: str, form: Form, first: int) -> None:
    """Remove the page ``first`` and those that follow it without a gap."""
    for number in count(first):
        path = _page(folder, name, form, number)
        if not path.is_file():
            return
        try:
            path.unlink()
        except OSError as error:
            raise unwritable(path, error) from error
