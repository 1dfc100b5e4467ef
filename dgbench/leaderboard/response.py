"""Shift response: what methods score as one axis of the phantom grows, against what they score at the strength they were trained at."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dgbench.errors import DgbenchError
from dgbench.leaderboard import policies
from dgbench.leaderboard.resampling import CENTERS_RESAMPLED_FROM, bootstrap, intervals
from dgbench.leaderboard.results import seed_words
from dgbench.leaderboard.scores import FloatArray
from dgbench.leaderboard.sheets import BANNERS, UNDEFINED, Sheet, points
from dgbench.leaderboard.statistics import evidence, smoke_stamp

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Response:
    """The curves of some methods on one axis; every DSC in [0, 1].

    ``strengths`` ascend and hold ``neutral``, the strength of training. ``values`` holds per method and held-out center an array
    (strengths, seeds, cases) without NaN, ``ceiling`` per center one (strengths, cases): the true lesion against the annotated one.
    ``excluded`` counts per center the cases left out because their annotated lesion is empty at some strength, ``failed`` the rows of
    cases that could not be judged. ``heading`` says what was run, ``notes`` what a reader must know of the axis.
    """

    axis: str
    neutral: float
    strengths: tuple[float, ...]
    seeds: tuple[int, ...]
    values: Mapping[str, Mapping[str, FloatArray]]
    ceiling: Mapping[str, FloatArray]
    excluded: Mapping[str, int]
    failed: int
    heading: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def methods(self) -> tuple[str, ...]:
        """In the order in which they were named."""
        return tuple(self.values)

    @property
    def centers(self) -> tuple[str, ...]:
        """The held-out centers."""
        return tuple(self.ceiling)

    @property
    def counts(self) -> dict[str, int]:
        """Cases per center that every number is a mean over."""
        return {center: array.shape[1] for center, array in self.ceiling.items()}

    def by_seed(self, method: str, center: str | None = None) -> FloatArray:
        """Means over the cases of a center, or their equal-weight mean over centers: (strengths, seeds)."""
        chosen = self.centers if center is None else (center,)
        means: FloatArray = np.mean([self.values[method][name].mean(axis=2) for name in chosen], axis=0)
        return means

    def curve(self, method: str, center: str | None = None) -> FloatArray:
        """The mean over seeds of :meth:`by_seed`: (strengths,)."""
        means: FloatArray = self.by_seed(method, center).mean(axis=1)
        return means

    def ceiling_curve(self, center: str | None = None) -> FloatArray:
        """The annotation ceiling of a center, or its equal-weight mean over centers: (strengths,)."""
        chosen = self.centers if center is None else (center,)
        means: FloatArray = np.mean([self.ceiling[name].mean(axis=1) for name in chosen], axis=0)
        return means

    def change(self, method: str) -> FloatArray:
        """The mean over centers minus that at the neutral strength, at the same seeds and cases: (strengths,)."""
        curve = self.curve(method)
        change: FloatArray = curve - curve[self.strengths.index(self.neutral)]
        return change

    def interval(self, method: str) -> tuple[FloatArray, FloatArray] | None:
        """The 95 % interval of :meth:`change` by the bootstrap (:mod:`dgbench.leaderboard.resampling`): two-way (seed × patient), centers
        fixed; from six centers up, centers are resampled instead. None where there are too few seeds for one, or a single case."""
        if not evidence(len(self.seeds)).has_interval or min(self.counts.values()) < 2:
            return None
        at = self.strengths.index(self.neutral)
        return intervals(bootstrap({name: array - array[at] for name, array in self.values[method].items()}))


def gather(
    rows: "pd.DataFrame",
    ceiling: "pd.DataFrame",
    *,
    axis: str,
    neutral: float,
    policy: policies.Policy,
    heading: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Response:
    """Curves from raw rows of one view.

    Args:
        rows: raw case rows with ``method``, ``seed`` and ``strength`` beside; the methods come out in their order of appearance.
        ceiling: ``case``, ``center``, ``strength`` and ``ceiling`` in [0, 1].
        axis: the axis that grows.
        neutral: the strength of training, which must be among the rows.
        policy: what an undefined DSC counts for.
        heading: what was run, below the banner.
        notes: what a reader must know of the axis.

    Raises:
        DgbenchError: a method lacks a case that another one has, or a center has no case with an annotated lesion at every strength.
    """
    import pandas as pd

    resolved = policies.apply_policy(rows, policy)
    failed = int(resolved["failed"].sum())
    strengths = tuple(sorted({float(value) for value in resolved["strength"]}))
    seeds = tuple(sorted({int(value) for value in resolved["seed"]}))
    methods = list(dict.fromkeys(resolved["method"]))
    values: dict[str, dict[str, FloatArray]] = {method: {} for method in methods}
    ceilings: dict[str, FloatArray] = {}
    excluded: dict[str, int] = {}
    for center, part in resolved.groupby("center", sort=False):
        name = str(center)
        out = set(part.loc[~part["included"], "case"])
        cases = sorted(set(part["case"]) - out)
        if not cases:
            raise DgbenchError(
                f"{name}: no case has an annotated lesion at every strength of {axis} — choose weaker ones"
            )
        excluded[name] = len(out)
        index = pd.MultiIndex.from_product([strengths, seeds, cases])
        shape = (len(strengths), len(seeds), len(cases))
        for method in methods:
            own = part[part["method"] == method].set_index(["strength", "seed", "case"])["dsc"]
            found = own.reindex(index).to_numpy(dtype=np.float64).reshape(shape)
            if np.isnan(found).any():
                raise DgbenchError(f"{method} at {name}: {int(np.isnan(found).sum())} values are missing — run again")
            values[method][name] = found
        told = ceiling[ceiling["center"] == name].set_index(["strength", "case"])["ceiling"]
        pairs = pd.MultiIndex.from_product([strengths, cases])
        ceilings[name] = told.reindex(pairs).to_numpy(dtype=np.float64).reshape(len(strengths), len(cases))
    return Response(
        axis=axis,
        neutral=neutral,
        strengths=strengths,
        seeds=seeds,
        values=values,
        ceiling=ceilings,
        excluded=excluded,
        failed=failed,
        heading=tuple(heading),
        notes=tuple(notes),
    )


def coverage(response: Response) -> list[str]:
    """Which cases the numbers are means over, and which are not among them."""
    cases = ", ".join(f"{center} {count}" for center, count in response.counts.items())
    smoke = smoke_stamp(len(response.seeds))
    few = f" ({smoke})" if smoke else ""
    lines = [f"cases: {cases}; {seed_words(response.seeds)}{few}"]
    if any(response.excluded.values()):
        out = ", ".join(f"{center} {count}" for center, count in response.excluded.items() if count)
        lines.append(f"left out at every strength, because the annotated lesion is empty at one: {out}")
    if response.failed:
        lines.append(f"rows of cases that could not be judged, counted as DSC 0: {response.failed}")
    return lines


def to_sheet(response: Response) -> Sheet:
    """A line per strength; per method the mean DSC over centers and its change from the neutral strength."""
    columns = ["strength"]
    for method in response.methods:
        columns += [method, f"{method}: change"]
    lines = []
    cells = {method: _cells(response, method) for method in response.methods}
    ceiling = response.ceiling_curve()
    for at, strength in enumerate(response.strengths):
        mark = " (training)" if strength == response.neutral else ""
        own = [cell for method in response.methods for cell in cells[method][at]]
        top = UNDEFINED if np.isnan(ceiling[at]) else points(ceiling[at])
        lines.append((f"{strength:g}{mark}", *own, top))
    columns.append("ceiling")
    spread = "; ± is the standard deviation over seeds" if len(response.seeds) > 1 else ""
    over = f"mean over the held-out centers {', '.join(response.centers)}" if len(response.centers) > 1 else ""
    banner = (
        BANNERS["phantom"],
        f"shift response, axis {response.axis}{', ' if over else ''}{over}",
        *response.heading,
        f"DSC in points (0–100){spread}; change: difference to the strength of training at the same cases, "
        f"{_interval_words(response)}; ceiling: the true lesion against the annotated one",
        *coverage(response),
    )
    return Sheet(
        heading=banner,
        columns=tuple(columns),
        rows=tuple(lines),
        footer=response.notes,
        numeric=frozenset(columns) - {"strength"},
    )


def _interval_words(response: Response) -> str:
    if response.interval(response.methods[0]) is None:
        return "without an interval, which needs three seeds and two cases"
    if len(response.centers) < CENTERS_RESAMPLED_FROM:
        return "95 % interval over seeds and patients, these centers only"
    return "95 % interval over centers, which are resampled"


def _cells(response: Response, method: str) -> list[tuple[str, str]]:
    """DSC and change at each strength, as text."""
    by_seed, change, interval = response.by_seed(method), response.change(method), response.interval(method)
    cells = []
    for at, strength in enumerate(response.strengths):
        spread = f" ± {100 * by_seed[at].std(ddof=1):.1f}" if len(response.seeds) > 1 else ""
        words = "" if strength == response.neutral else _signed(change[at])
        if words and interval is not None:
            low, high = interval[0][at], interval[1][at]
            words += f" [{_signed(low)}, {_signed(high)}]" if np.isfinite(high - low) else " [unbounded]"
        cells.append((f"{100 * by_seed[at].mean():.1f}{spread}", words))
    return cells


def _signed(value: float) -> str:
    """A difference in points, one decimal; what rounds to zero has no sign."""
    text = f"{100 * value:+.1f}"
    return text[1:] if float(text) == 0 else text


def to_json(response: Response) -> dict[str, Any]:
    """Everything with full precision, DSC in [0, 1]; None where there is no interval, or no bound."""
    return {
        "data": BANNERS["phantom"],
        "heading": list(response.heading),
        "notes": list(response.notes),
        "axis": response.axis,
        "neutral": response.neutral,
        "strengths": list(response.strengths),
        "seeds": list(response.seeds),
        "cases": response.counts,
        "excluded": dict(response.excluded),
        "failed": response.failed,
        "ceiling": {
            "mean": response.ceiling_curve().tolist(),
            "centers": {center: response.ceiling_curve(center).tolist() for center in response.centers},
        },
        "methods": [_method_json(response, method) for method in response.methods],
    }


def _method_json(response: Response, method: str) -> dict[str, Any]:
    interval = response.interval(method)
    return {
        "method": method,
        "mean": response.curve(method).tolist(),
        "by_seed": response.by_seed(method).tolist(),
        "change": response.change(method).tolist(),
        "interval": None
        if interval is None
        else [[bound if math.isfinite(bound) else None for bound in end.tolist()] for end in interval],
        "centers": {center: response.curve(method, center).tolist() for center in response.centers},
    }
