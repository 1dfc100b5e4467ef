"""What a compiled leaderboard is made of: scores, rows, holes and tables, without a word on how they are printed."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Literal

from dgbench.leaderboard import policies
from dgbench.leaderboard.costs import RowCost
from dgbench.leaderboard.evidence import TableStatistics
from dgbench.leaderboard.records import View
from dgbench.store.manifest import Tier

METRICS = ("dsc", "nsd", "asd", "hd95", "centroid")
"""DSC and NSD in [0, 1]; ASD, HD95 and centroid distance in mm."""

DETECTION = ("sensitivity", "false_positives", "false_positives_lesion_free")
"""Share of the reference lesions that are found, in [0, 1]; false-positive lesions per held-out case, and per case of the support
centers."""
AMONG_DETECTED = ("asd_detected", "hd95_detected", "centroid_detected")
"""Distances in mm over the cases where both masks hold voxels: no constant of a policy enters."""

QUARTILES = tuple(f"{metric}_{part}" for metric in policies.DISTANCES for part in ("median", "q25", "q75"))
"""Median and interquartile range of the distances over cases, in mm: they are skewed, and a mean hides it."""

COUNTS = ("n", "n_excluded", "n_empty_prediction", "n_failed")
"""What is counted of the held-out cases."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """A metric over seeds: mean and standard deviation (n−1; ``None`` for one seed)."""

    mean: float
    sd: float | None
    n_seeds: int


@dataclass(frozen=True, kw_only=True)
class CountedRun:
    """What a row has at one center with one seed: a run, or in-domain the runs of all folds together. Their folders below the runs root,
    the commands that made them, the threshold of the rows of each, and the means over all their cases; an undefined one is absent."""

    folders: tuple[str, ...]
    commands: tuple[str, ...]
    thresholds: tuple[float, ...]
    means: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class CenterResult:
    """One held-out center of one row, with its runs by seed. ``scores`` is empty while a seed is missing; a metric that no case defines
    is absent."""

    scores: Mapping[str, Score]
    runs: Mapping[int, CountedRun]
    counts: Mapping[str, int]

    @property
    def finished_seeds(self) -> tuple[int, ...]:
        """The seeds with a counted run, in order."""
        return tuple(self.runs)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method with one configuration; a ``control`` row had more draws than the protocol gives; of an ``imported`` one only masks are
    known; ``tuned`` says by how many trials, in words; with the ``is_baseline`` one the others are compared. ``mean`` is empty and
    ``worst`` ``None`` unless every center and seed is there; ``cost`` is None where no run tells of it. ``stamps``, the first of the
    ``notes``, must be said beside every number of the row. ``record`` is the lowest tier of its counted runs where all of them are
    submitted records."""

    label: str
    method: str
    version: int
    config: Mapping[str, Any]
    modified: bool
    control: bool
    imported: bool
    tuned: str | None
    is_baseline: bool
    seeds: tuple[int, ...]
    centers: Mapping[str, CenterResult]
    mean: Mapping[str, Score]
    worst: str | None
    rank: int | None
    cost: RowCost | None
    record: Tier | None
    stamps: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether no run is missing."""
        return bool(self.mean)

    @property
    def counted_seeds(self) -> tuple[int, ...]:
        """The seeds of which a run is counted; ``seeds`` are all that the row owes."""
        return tuple(seed for seed in self.seeds if any(seed in center.runs for center in self.centers.values()))

    @property
    def seeds_text(self) -> str:
        """The counted seeds."""
        return ", ".join(map(str, self.counted_seeds)) or "none"


@dataclass(frozen=True, kw_only=True)
class Missing:
    """A hole: a (row, held-out center, seed) without a finished run, why, and the command that fills it. ``heldout`` is the center, or
    in-domain a fold of it."""

    label: str
    center: str
    heldout: str
    seed: int
    reason: str
    command: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """Comparable rows. ``n_cases`` and ``n_excluded`` per center are equal for every row and seed; ``statistics`` are of the complete,
    unmodified rows. ``identities`` are those of all data that the rows depend on, ``data`` says in words which data that is. With
    the row called ``baseline`` the others are compared, or would be."""

    dgbench: tuple[str, ...]
    protocol_version: int
    content: str
    preset: str
    ranked: bool
    data: str
    identities: Mapping[str, str]
    centers: tuple[str, ...]
    seeds: tuple[int, ...]
    baseline: str
    n_cases: Mapping[str, int]
    n_excluded: Mapping[str, int]
    rows: tuple[Row, ...]
    missing: tuple[Missing, ...]
    statistics: TableStatistics | None

    def only(self, row: Row) -> "Table":
        """The table with this row alone, and what it misses."""
        return replace(self, rows=(row,), missing=tuple(hole for hole in self.missing if hole.label == row.label))


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """All tables of one protocol in one view, newest dgbench and protocol version first; ``folds`` where it is in-domain; ``first_seeds``
    where runs with later seeds were left out; ``problems``: folders that cannot be read. NSD is at ``nsd_tolerance_mm``. ``start`` is the
    command of a first run; ``options`` are those that any command for these runs takes."""

    protocol: str
    kind: Literal["phantom", "patient"]
    folds: int | None
    view: View
    first_seeds: int | None
    policy: policies.Policy
    nsd_tolerance_mm: float
    tables: tuple[Table, ...]
    problems: tuple[str, ...]
    start: str
    options: tuple[str, ...]


def seed_words(seeds: Sequence[int]) -> str:
    """``seed 4`` or ``seeds 0, 1``."""
    return f"seed{'s' if len(seeds) != 1 else ''} {', '.join(map(str, seeds))}"


def seeds_text(compiled: Compiled, table: Table) -> str:
    """The seeds that every row owes, and whether others were left out."""
    only = (
        "" if compiled.first_seeds is None else f" (--seeds {compiled.first_seeds}: runs with later seeds are left out)"
    )
    return seed_words(table.seeds) + only


def runs_text(compiled: Compiled, table: Table, methods: Collection[str] | None = None) -> str:
    """The seeds, how many runs are counted, and how many are missing; of ``methods`` alone if given."""
    rows = [row for row in table.rows if methods is None or row.method in methods]
    counted = sum(len(run.folders) for row in rows for center in row.centers.values() for run in center.runs.values())
    holes = sum(hole.label in {row.label for row in rows} for hole in table.missing)
    missing = f", {holes} missing" if holes else ""
    return f"{seeds_text(compiled, table)}; {counted} runs counted{missing}"


def seed_means(row: Row) -> dict[int, float]:
    """The mean DSC over centers of each seed, in points; none while a run is missing."""
    if not row.complete:
        return {}
    return {seed: 100 * fmean(center.runs[seed].means["dsc"] for center in row.centers.values()) for seed in row.seeds}
