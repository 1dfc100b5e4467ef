"""What figures are drawn from: one table of a leaderboard, with the run folder behind each of its cells."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dgbench.errors import DgbenchError
from dgbench.leaderboard import policies
from dgbench.leaderboard.compile import compile_runs
from dgbench.leaderboard.figures.style import Sheet, new_sheet
from dgbench.leaderboard.notes import stamp_words
from dgbench.leaderboard.records import OFFICIAL, View
from dgbench.leaderboard.results import Compiled, Row, Table, seeds_text
from dgbench.leaderboard.sheets import BANNERS, IN_DOMAIN
from dgbench.leaderboard.statistics import Evidence, smoke_stamp
from dgbench.leaderboard.tables import oracle_text, smoke_text
from dgbench.protocol import Protocol
from dgbench.store.folder import RunFolder, read_run

if TYPE_CHECKING:
    import pandas as pd

MOST_NAMED = 6
"""How many missing runs a footer names before it says how many more there are."""
POOLED = "the finished ones are pooled"
"""What becomes of the seeds of a row that are there where others are missing, on figures of cases."""


class NothingToDraw(DgbenchError):
    """A figure that no run folder has anything for: why, in one line."""


class Drawing(NamedTuple):
    """The pages of one figure and what is not on them, a line each."""

    sheets: Sequence[Sheet]
    undrawn: Sequence[str] = ()


@dataclass(frozen=True)
class Cell:
    """A finished run: one row of the table, one held-out center (in-domain a fold of it), one seed. ``threshold`` is that of its rows,
    which a rule may have chosen. ``others`` are the folders of all runs of the table at this center."""

    label: str
    center: str
    seed: int
    run: RunFolder
    view: View
    threshold: float
    policy: policies.Policy
    others: Sequence[Path] = ()

    @cached_property
    def cases(self) -> "pd.DataFrame":
        """The held-out cases in the view of the table, undefined values resolved by its policy."""
        import numpy as np
        import pandas as pd

        raw = self.run.cases()
        chosen = (raw["role"] == "held-out") & (raw["setting"] == self.view.setting)
        chosen &= (raw["checkpoint"] == self.view.checkpoint) & np.isclose(raw["threshold"], self.threshold)
        rows = raw[chosen]
        together = pd.concat([rows, *self._references(rows[policies.unread_references(rows)])], ignore_index=True)
        return policies.apply_policy(together, self.policy).iloc[: len(rows)]

    def _references(self, unread: "pd.DataFrame") -> "Iterator[pd.DataFrame]":
        """The rows of other runs that tell what the references of the ``unread`` cases hold, as they tell the table."""
        if unread.empty:
            return
        for folder in self.others:
            rows = read_run(self.run.root, folder).cases()
            yield rows[rows["case"].isin(unread["case"]) & (rows["role"] == "held-out")]

    @property
    def stage(self) -> str:
        """The stage that the view judges."""
        return str(self.cases["stage"].iloc[0])


@dataclass(frozen=True, kw_only=True)
class Board:
    """One table and its cells: rows in the order of the table, then centers, then seeds. ``older`` counts tables of the same preset
    that are not comparable with this one; ``intensities`` says what stored slices show. ``imported`` names the prediction sets of the
    table, which no figure draws."""

    compiled: Compiled
    table: Table
    intensities: str
    cells: Sequence[Cell]
    older: int = 0
    imported: Sequence[str] = ()

    @property
    def labels(self) -> list[str]:
        """The rows with at least one finished run, in the order of the table."""
        drawn = {cell.label for cell in self.cells}
        return [row.label for row in self.table.rows if row.label in drawn]

    def row(self, label: str) -> Row:
        """The row of that label."""
        return next(row for row in self.table.rows if row.label == label)

    def of(self, label: str, center: str | None = None) -> list[Cell]:
        """The finished runs of a row, of one center where it is named."""
        return [cell for cell in self.cells if cell.label == label and center in (None, cell.center)]

    def reason(self, label: str, center: str) -> str:
        """Why a row has no finished run at a center: the reason of its first missing seed."""
        holes = [hole.reason for hole in self.table.missing if (hole.label, hole.center) == (label, center)]
        return holes[0].partition(":")[0] if holes else "not run"

    def some_seeds(self, label: str, center: str) -> str | None:
        """``4 of 5 seeds`` where not all seeds of a row are finished at a center."""
        finished, due = {cell.seed for cell in self.of(label, center)}, self.row(label).seeds
        return f"{len(finished)} of {len(due)} seeds" if len(finished) < len(due) else None

    def heading(self, title: str) -> list[str]:
        """Phantom or patients first; then what the numbers are of, and what the held-out center told; then the stamps of the rows."""
        table, view = self.table, self.compiled.view
        seeds = seeds_text(self.compiled, table)
        lines = [
            f"{BANNERS[self.compiled.kind]} · {title}",
            f"protocol {self.compiled.protocol} version {table.protocol_version} ({table.content[:8]}), preset {table.preset}, "
            f"setting {view.setting}, threshold {view.threshold_text}, checkpoint {view.checkpoint}, policy {view.policy}; {seeds}",
        ]
        return [*lines, *filter(None, [oracle_text(view).strip()]), *self.stamps()]

    def stamps(self) -> list[str]:
        """What must be said beside every number: once where it holds for every row, else with the rows it holds for."""
        words = stamp_words({label: self.row(label).stamps for label in self.labels})
        few = [label for label in self.labels if smoke_stamp(len(self.row(label).counted_seeds))]
        if smoke := smoke_text(self.table):
            words.append(smoke)
        elif few:
            words.append(f"one or two seeds, {Evidence.SMOKE}: {', '.join(few)}")
        if self.compiled.folds:
            words.append(IN_DOMAIN)
        if not self.table.ranked and not any("not ranked" in word for word in words):
            words.append("not ranked")
        return ["; ".join(words)] if words else []

    def missing(self, treated: str) -> list[str]:
        """Which runs of the table are missing and how they are ``treated``, in one line; nothing for a complete table."""
        holes = [f"{hole.label} {hole.heldout} seed {hole.seed} ({hole.reason})" for hole in self.table.missing]
        if not holes:
            return []
        return [f"missing runs ({len(holes)}), {treated}: {shortened(holes, '(`dgbench leaderboard` lists all)')}"]

    def not_drawn(self) -> list[str]:
        """The imported prediction sets by name, in one line; nothing where there is none."""
        return [f"imported prediction sets are not drawn: {', '.join(self.imported)}"] if self.imported else []

    def sheet(
        self, width: float, body: float, title: str, footer: Iterable[str] = (), missing: str = "never averaged over"
    ) -> Sheet:
        """A sheet with the heading of this board, and ``footer``, the ``missing`` runs and what is not drawn below."""
        version = f"dgbench {', '.join(self.table.dgbench)}; data {self.table.data}"
        return new_sheet(
            width, body, self.heading(title), [*footer, *self.missing(missing), *self.not_drawn(), version]
        )


def shortened(words: Sequence[str], rest: str, most: int = MOST_NAMED) -> str:
    """The first of ``words``, and how many there are beyond; ``rest`` says what they are or where to find them."""
    more = len(words) - most
    return "; ".join(words) if more <= 0 else f"{'; '.join(words[:most])}; and {more} more {rest}"


def named(cells: Iterable[Cell]) -> str:
    """Runs by name, short: ``erm MSD 0, 1, RENJI 0; randconv MSD 0`` (the numbers are seeds)."""
    rows: dict[str, dict[str, list[str]]] = {}
    for cell in cells:
        rows.setdefault(cell.label, {}).setdefault(cell.center, []).append(str(cell.seed))
    words = []
    for label, centers in rows.items():
        cells_of = (f"{center} {', '.join(seeds)}" for center, seeds in centers.items())
        words.append(f"{label} {', '.join(cells_of)}")
    return shortened(words, "rows")


def undrawn(cells: Sequence[Cell], total: int, what: str) -> list[str]:
    """One line about the runs of which ``what`` is true (``lack features.parquet``); nothing where there is none."""
    if not cells:
        return []
    if len(cells) == total:
        return [f"not drawn, all {total} runs {what}"]
    return [f"not drawn, {len(cells)} of {total} runs {what} (row, center, seeds): {named(cells)}"]


def load_board(
    root: Path, protocol: Protocol, preset: str | None, view: View = OFFICIAL, seeds: int | None = None
) -> Board:
    """The newest table of ``protocol`` and ``preset`` among the runs under ``root``, of the first ``seeds`` where it is given.

    Raises:
        DgbenchError: there is no finished run, or runs of several presets and none is named.
    """
    compiled = compile_runs(root, protocol=protocol, preset=preset, view=view, seeds=seeds)
    there = [table for table in compiled.tables if any(_has_runs(row) for row in table.rows)]
    wanted = f"protocol {protocol.name}" + (f", preset {preset}" if preset else "")
    if not there:
        problem = f"; {compiled.problems[0]}" if compiled.problems else ""
        raise DgbenchError(
            f"--runs {root}: no finished run of {wanted} in setting {view.setting}{problem} — "
            f"start with: {compiled.start}"
        )
    presets = sorted({table.preset for table in there})
    if len(presets) > 1:
        raise DgbenchError(f"--runs {root}: runs of the presets {', '.join(presets)} — name one with --preset")
    return board_of(compiled, there[0], root, protocol, older=len(there) - 1)


def board_of(
    compiled: Compiled, table: Table, root: Path, protocol: Protocol, older: int = 0, whole: Table | None = None
) -> Board:
    """The board of the trained rows of one table of the runs under ``root``, or of a part of the ``whole`` one; ``older`` tables of other
    runs are told beside."""
    others = {
        center: [root / folder for row in (whole or table).rows for folder in _folders(row, center)]
        for center in table.centers
    }
    trained = tuple(row for row in table.rows if not row.imported)
    imported = [row.label for row in table.rows if row.imported]
    cells = [
        Cell(
            row.label,
            center,
            seed,
            read_run(root, root / folder),
            compiled.view,
            threshold,
            compiled.policy,
            others[center],
        )
        for row in trained
        for center in table.centers
        for seed, run in sorted(row.centers[center].runs.items())
        for folder, threshold in zip(run.folders, run.thresholds, strict=True)
    ]
    holes = tuple(hole for hole in table.missing if hole.label not in imported)
    drawn = replace(table, rows=trained, missing=holes)
    shown = protocol.task.intensity
    between = f"{shown.low:g} to {shown.high:g}".replace("-", "−")
    intensities = f"percentiles {between}" if shown.kind == "percentile" else f"intensities {between} (CT: HU)"
    return Board(compiled=compiled, table=drawn, intensities=intensities, cells=cells, older=older, imported=imported)


def _folders(row: Row, center: str) -> list[str]:
    return [folder for run in row.centers[center].runs.values() for folder in run.folders]


def _has_runs(row: Row) -> bool:
    return not row.imported and any(result.runs for result in row.centers.values())


class Options(NamedTuple):
    """What a reader may choose. ``limit`` is a DSC in [0, 1]; ``by`` the row that chooses the cases of the overlays, None for the mean
    over rows; ``lesion_type`` tells what grows in a case, where the data does."""

    limit: float = 0.2
    by: str | None = None
    lesion_type: Callable[[str], str] = lambda _: "unknown"
