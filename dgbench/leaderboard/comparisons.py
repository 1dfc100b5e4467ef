"""The statistics of a compiled table: which of its rows are compared, and with which.

A method is compared with a baseline that had the same chances: as it is with the baseline as it is, tuned with the baseline tuned by as
many trials (protocol.md §8: every method searches).
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dgbench.leaderboard import notes as notes_on
from dgbench.leaderboard.costs import RunCost, mixed_cells
from dgbench.leaderboard.evidence import Family, TableStatistics, table_statistics
from dgbench.leaderboard.results import METRICS, Row
from dgbench.leaderboard.statistics import BASELINE

if TYPE_CHECKING:
    import pandas as pd

NAMED_CELLS = 5
"""Up to so many pairs of center and seed are named in a note."""


def statistics_of(
    rows: Sequence[Row],
    seeds: Sequence[int],
    resolved: "pd.DataFrame | None",
    costs: Mapping[str, Mapping[tuple[str, int], RunCost]],
    *,
    claims: bool,
) -> TableStatistics | None:
    """Of complete rows of the preset as it is with all ``seeds``; rows with more draws, imported sets, and all rows of a table without
    ``claims`` (one that is not ranked), are compared and take no rank.

    Args:
        rows: of the table.
        seeds: that every row owes.
        resolved: case rows of all counted runs, with their ``folder``; None without any.
        costs: of the runs of each row, by its label and their (held-out center, seed).
        claims: whether the table is ranked.
    """
    complete = {row.label: row for row in rows if row.complete and not row.modified and set(seeds) <= set(row.seeds)}
    complete = {label: row for label, row in complete.items() if not (row.imported and notes_on.repeated(row.centers))}
    if resolved is None or not complete:
        return None
    cells = {
        folder: (label, seed)
        for label, row in complete.items()
        for center in row.centers.values()
        for seed, run in center.runs.items()
        for folder in run.folders
        if seed in seeds
    }
    baseline = next((label for label, row in complete.items() if row.is_baseline), None)
    imported = [label for label, row in complete.items() if row.imported]
    families, notes = _families([row for row in complete.values() if not row.imported], claims=claims)
    notes += _machine_notes([costs[label] for label in complete], seeds)
    ranked = [label for label, row in complete.items() if claims and not (row.control or row.imported)]
    cases = _cases_of(resolved, cells)
    found = table_statistics(
        cases,
        families=families,
        baseline=baseline,
        imported=imported,
        ranked=ranked,
        metrics=METRICS,
        claims=claims,
    )
    return found and replace(found, notes=(*found.notes, *notes))


def _cases_of(resolved: "pd.DataFrame", cells: Mapping[str, tuple[str, int]]) -> "pd.DataFrame":
    """The included rows of the runs in ``cells``, by folder, with the ``method`` and the ``seed`` that these give."""
    import numpy as np
    import pandas as pd

    rows = resolved[resolved["folder"].isin(list(cells)) & resolved["included"]]
    folder = rows["folder"].cat.remove_unused_categories()
    found, places = [cells[name] for name in folder.cat.categories], folder.cat.codes.to_numpy()
    method, seed = pd.Categorical([name for name, _ in found]), np.array([seed for _, seed in found], dtype=np.int64)
    return rows.assign(method=method[places], seed=seed[places])


def _families(rows: Collection[Row], *, claims: bool) -> tuple[list[Family], list[str]]:
    """The families of the complete trained ``rows``, and what a reader must know of them.

    Tuned rows without a baseline that was tuned so are compared with the baseline as it is, without a claim: the method and its search
    differ at once. So is the tuned baseline itself.
    """
    plain = next((row for row in rows if row.is_baseline), None)
    families: list[Family] = []
    notes: list[str] = []
    alone: list[Row] = []
    for words in sorted({row.tuned for row in rows if row.tuned is not None}):
        group = [row for row in rows if row.tuned == words]
        own = next((row for row in group if row.method == BASELINE), None)
        if own is not None and len(group) > 1:
            families.append(Family(own.label, _labels(group, own), claims))
            notes.append(f"rows tuned({words}) are compared with {own.label}")
        alone += group if own is None else [own]
    if plain is not None:
        untuned = [row for row in rows if row.tuned is None]
        families = [Family(plain.label, _labels(untuned, plain), claims), *families]
        if alone:
            families.append(Family(plain.label, _labels(alone), claims=False))
            names = ", ".join(row.label for row in alone)
            notes.append(f"{names}: compared with {plain.label} as it is, so without p — a search differs too")
    if len({row.tuned for row in rows}) > 1:
        notes.append(
            "rows with different numbers of trials stand in one order: only equal numbers compare methods alone"
        )
    return families, notes


def _machine_notes(costs: Iterable[Mapping[tuple[str, int], RunCost]], seeds: Collection[int]) -> list[str]:
    """What pairs runs of one center and seed (draws, initial weights, trainings of shared stages) pairs them less across machines."""
    cells = [f"{heldout} seed {seed}" for heldout, seed in mixed_cells(costs) if seed in seeds]
    if not cells:
        return []
    where = ", ".join(cells) if len(cells) <= NAMED_CELLS else f"{len(cells)} pairs of center and seed"
    return [f"{where}: compared runs are of different machines, where equal trainings come to different results"]


def _labels(rows: Sequence[Row], baseline: Row | None = None) -> tuple[str, ...]:
    return tuple(row.label for row in rows if row is not baseline)
