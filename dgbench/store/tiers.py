"""What second records of the same key, made elsewhere, say about a record: experimental, reproduced or verified.

A key holds everything that should decide a run's numbers, but not the machine. ``reproduced``: in another environment every mean DSC
came out the same within :data:`MEAN_TOLERANCE`. ``verified``: there every single case did, within :data:`CASE_TOLERANCE`. Compared are
the held-out rows at the official threshold and checkpoint, in every setting of the record. A second record is of a second run: no two
take the same time at every step, so equal times are those of a copy.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dgbench.errors import DgbenchError
from dgbench.store.foreign import read_table
from dgbench.store.manifest import REPRODUCTIONS, Tier, environment_of
from dgbench.store.times import EVALUATION_LOG, STAGE_LOG

if TYPE_CHECKING:
    import pandas as pd

MEAN_TOLERANCE = 0.02
"""Largest difference of a mean DSC, in [0, 1]."""
CASE_TOLERANCE = 0.01
"""Largest difference of the DSC of a case, in [0, 1]."""
TIERS: tuple[Tier, ...] = ("experimental", "reproduced", "verified")


def lowest_tier(tiers: Iterable[Tier | None]) -> Tier | None:
    """The lowest of several tiers; None without any, or where one is missing."""
    found = list(tiers)
    return min((tier for tier in found if tier is not None), key=TIERS.index) if found and None not in found else None


def reproductions(record: Path) -> list[Path]:
    """The second records inside a record, sorted."""
    return sorted(path for path in (record / REPRODUCTIONS).glob("*") if path.is_dir())


def supported_tier(record: Path) -> Tier:
    """The highest tier that the reproductions of ``record`` support.

    Raises:
        DgbenchError: a reproduction is none (:func:`require_second_run`), or its rows cannot be read.
    """
    known = [record]
    tier: Tier = "experimental"
    for second in reproductions(record):
        require_second_run(second, known)
        known.append(second)
        tier = max(tier, agreement(_official(record), _official(second)), key=TIERS.index)
    return tier


def require_second_run(second: Path, known: Sequence[Path]) -> None:
    """Raise DgbenchError where ``second`` was made in an environment of the ``known`` records of its key (the first and its reproductions),
    or is a copy of one of them."""
    environments = [environment_of(one) for one in known]
    if not all(environments) or environment_of(second) in environments:
        raise DgbenchError(f"{second}: made in an environment that the record has already — leave it out")
    for one in known:
        theirs = _clocks(one)
        if same := [name for name, content in _clocks(second).items() if theirs.get(name) == content]:
            raise DgbenchError(f"{second / same[0]}: has the times of {one} — a copy is no second run, leave it out")


def _clocks(folder: Path) -> dict[str, bytes]:
    """By name, the content of each file that says how long something took."""
    logs = [path for log in (STAGE_LOG, EVALUATION_LOG) for path in folder.glob(f"*/{log}")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(logs)}


def agreement(first: "pd.Series[float]", second: "pd.Series[float]") -> Tier:
    """The tier that two DSC columns, indexed by (setting, case), support."""
    if not first.index.sort_values().equals(second.index.sort_values()):
        return "experimental"
    difference = first - second
    if bool((difference.abs() <= CASE_TOLERANCE).all()):
        return "verified"
    means = difference.groupby(level="setting").mean().abs()
    return "reproduced" if bool((means <= MEAN_TOLERANCE).all()) else "experimental"


def _official(record: Path) -> "pd.Series[float]":
    """DSC of the held-out cases at threshold 0.5, source-val checkpoint; 0 for failed cases and two empty masks."""
    import numpy as np
    import pandas as pd

    path = record / "evaluation" / "cases.parquet"
    try:
        rows = read_table(path, columns=["case", "role", "setting", "checkpoint", "threshold", "dsc"])
    except (OSError, ValueError) as error:
        raise DgbenchError(f"{path}: not a readable table ({' '.join(str(error).split())})") from error
    wanted = (
        (rows["role"] == "held-out")
        & (rows["checkpoint"] == "source-val")
        & np.isclose(rows["threshold"], 0.5, atol=1e-6)
    )
    dsc: pd.Series[float] = rows[wanted].set_index(["setting", "case"])["dsc"].fillna(0.0)
    return dsc
