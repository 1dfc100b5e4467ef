"""Per-case scores of comparable methods as arrays: the same cases and the same seeds for every method, or an error."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dgbench.errors import DgbenchError

if TYPE_CHECKING:
    import pandas as pd

FloatArray = NDArray[np.float64]

KEYS = ("method", "center", "seed", "case")


@dataclass(frozen=True, kw_only=True)
class ScoreTable:
    """One metric of every method, in the metric's own unit.

    ``values`` holds an array (methods, seeds, cases) per held-out center, without NaN. Row, column and layer mean the same
    method, seed and case throughout, so that differences between methods are paired. Seed ``s`` of one center and seed ``s`` of
    another are two trainings that share nothing but the number.
    """

    metric: str
    higher_is_better: bool
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    values: Mapping[str, FloatArray]

    @property
    def centers(self) -> tuple[str, ...]:
        """The held-out centers."""
        return tuple(self.values)

    def only(self, methods: Collection[str]) -> "ScoreTable":
        """The same scores of ``methods`` alone, in the table's order."""
        rows = [row for row, method in enumerate(self.methods) if method in methods]
        return replace(
            self,
            methods=tuple(self.methods[row] for row in rows),
            values={center: values[rows] for center, values in self.values.items()},
        )

    def position(self, method: str) -> int:
        """The row of ``method``. Raises DgbenchError where it is not in the table."""
        if method not in self.methods:
            raise DgbenchError(f"scores: no method {method!r} to compare with (there are: {', '.join(self.methods)})")
        return self.methods.index(method)

    def center_means(self) -> FloatArray:
        """Means over cases and seeds, (methods, centers)."""
        return np.stack([values.mean(axis=(1, 2)) for values in self.values.values()], axis=1)

    def means(self) -> FloatArray:
        """The ranked numbers: equal-weight means over centers, (methods,)."""
        means: FloatArray = self.center_means().mean(axis=1)
        return means

    def differences(self, baseline: str) -> dict[str, FloatArray]:
        """Every method minus ``baseline`` at the same center, seed and case; the baseline's own row is zero."""
        row = self.position(baseline)
        return {center: values - values[row] for center, values in self.values.items()}


def score_table(rows: "pd.DataFrame", metric: str, *, higher_is_better: bool) -> ScoreTable:
    """Tidy rows as a table; methods, centers, seeds and cases come out sorted.

    Args:
        rows: one row per (method, center, seed, case), with these four columns and ``metric``. Cases that a policy excludes are
            left out by the caller, as are methods with missing runs.
        metric: the column with the scores.
        higher_is_better: true for overlaps, false for distances; needed by ranks alone.

    Raises:
        DgbenchError: a column is missing, there is no row, a score is undefined, a pair is there twice, or a method lacks a
            (center, seed, case) that another one has.
    """
    lacking = [column for column in (*KEYS, metric) if column not in rows]
    if lacking:
        raise DgbenchError(f"scores: no column {', '.join(lacking)} — pass one row per method, center, seed and case")
    if rows.empty:
        raise DgbenchError("scores: no rows — nothing has been evaluated yet")
    rows = rows[[*KEYS, metric]]
    undefined = rows[metric].isna()
    if undefined.any():
        raise DgbenchError(
            f"scores: {metric} is undefined for {_name(rows[undefined].iloc[0])} ({undefined.sum()} such rows) — "
            "apply a policy that defines it, and leave excluded cases out"
        )
    (method, methods), (center, centers), (seed, seeds) = (_coded(rows[key]) for key in KEYS[:3])
    scores = rows[metric].to_numpy(np.float64)
    values: dict[str, FloatArray] = {}
    for place, name in enumerate(centers):
        members = np.flatnonzero(center == place)
        case, cases = _coded(rows["case"].iloc[members])
        shape = (len(methods), len(seeds), len(cases))
        cell = np.ravel_multi_index((method[members], seed[members], case), shape)
        found = np.bincount(cell, minlength=math.prod(shape))
        if (found > 1).any():
            again = members[np.flatnonzero(found[cell] > 1)[1]]
            raise DgbenchError(f"scores: {_name(rows.iloc[again])} is there twice — select one run per cell")
        if holes := int((found == 0).sum()):
            m, s, i = np.unravel_index(int((found == 0).argmax()), shape)
            raise DgbenchError(
                f"scores: {methods[m]} has no {metric} for {name}, seed {seeds[s]}, case {cases[i]} "
                f"({holes} such holes) — pairs are compared whole: run what is missing or leave the method out"
            )
        array = np.empty(math.prod(shape))
        array[cell] = scores[members]
        values[str(name)] = array.reshape(shape)
    return ScoreTable(
        metric=metric,
        higher_is_better=higher_is_better,
        methods=tuple(map(str, methods)),
        seeds=tuple(map(int, seeds)),
        values=values,
    )


def _coded(column: "pd.Series") -> tuple[NDArray[np.intp], list[Any]]:
    """The place of each value among all that are there, and these, sorted."""
    import pandas as pd

    codes, found = pd.factorize(column)
    names = found.tolist()
    order = sorted(range(len(names)), key=names.__getitem__)
    return np.argsort(order)[codes], [names[place] for place in order]


def _name(row: "pd.Series") -> str:
    return f"{row['method']}, {row['center']}, seed {row['seed']}, case {row['case']}"
