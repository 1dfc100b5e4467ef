"""Small inline drawings: one column of a table as marks on a common scale. Shapes tell what colours tell, and a label says it in words.

Geometry stands in attributes and colours in the style sheet, since the page's content-security-policy forbids inline styles.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 132, 18
_INSET = 6


@dataclass(frozen=True)
class Scale:
    """From values in points to pixels; ``low`` and ``high`` are round numbers around all values, never equal."""

    low: float
    high: float

    @classmethod
    def around(cls, values: Iterable[float], *, include: Sequence[float] = ()) -> "Scale | None":
        """A scale that holds all finite ``values`` and those of ``include``; None without any value."""
        known = [value for value in values if math.isfinite(value)]
        if not known:
            return None
        low, high = min(*known, *include, known[0]), max(*known, *include, known[0])
        span = max(high - low, 1.0)
        step = 10 ** math.floor(math.log10(span))
        step = step / 2 if span / step < 4 else step
        first, last = math.floor(low / step), math.ceil(high / step)
        return cls(first * step, max(last, first + 1) * step)

    def x(self, value: float) -> float:
        """Where ``value`` lies, in pixels of a drawing of :data:`WIDTH`."""
        share = (value - self.low) / (self.high - self.low)
        return _INSET + share * (WIDTH - 2 * _INSET)

    @property
    def text(self) -> str:
        """The ends of the scale."""
        return f"{self.low:g} to {self.high:g}"


def seeds_mark(by_seed: Mapping[int, float], scale: Scale) -> Markup:
    """A dot for each seed, a line over their range and a tick at their mean; values in points."""
    values = list(by_seed.values())
    mean = sum(values) / len(values)
    label = "mean over centers by seed: " + ", ".join(f"seed {seed} {value:.1f}" for seed, value in by_seed.items())
    parts = [_line(scale.x(min(values)), scale.x(max(values)), "range")]
    parts += [_dot(scale.x(value), "seed") for value in values]
    parts.append(_tick(scale.x(mean), "mean"))
    return _drawing(label, parts)


def interval_mark(mean: float, interval: tuple[float, float] | None, scale: Scale) -> Markup:
    """A difference in points with its interval on a scale with zero: filled where the interval excludes zero, hollow otherwise."""
    zero = _tick(scale.x(0.0), "zero")
    if interval is None:
        return _drawing(f"{mean:+.1f} points, no interval", [zero, _dot(scale.x(mean), "open", 3.5)])
    low, high = interval
    side = "better" if low > 0 else "worse" if high < 0 else "open"
    words = {"better": "above zero", "worse": "below zero", "open": "includes zero"}[side]
    label = f"{mean:+.1f} points, interval {low:+.1f} to {high:+.1f}, {words}"
    parts = [zero, _line(scale.x(low), scale.x(high), f"whisker {side}")]
    parts += [_tick(scale.x(low), f"end {side}"), _tick(scale.x(high), f"end {side}")]
    return _drawing(label, [*parts, _dot(scale.x(mean), side, 3.5)])


@dataclass(frozen=True, kw_only=True)
class Place:
    """One line of the rank strip."""

    label: str
    rank: int
    interval: tuple[int, int]
    tier: int | None


def rank_strip(places: Sequence[Place]) -> Markup:
    """Rank intervals of all methods below one another, best first; lines alternate with their tiers, which are written beside them."""
    left, plot, line, top = 190, 420, 18, 26
    width, height = left + plot + 70, top + line * len(places) + 8
    last = max(2, *(place.interval[1] for place in places), *(place.rank for place in places))

    def x(rank: float) -> float:
        return left + (rank - 1) / (last - 1) * plot

    every = max(1, round(last / 12))
    parts: list[Markup] = []
    for rank in range(1, last + 1):
        if (rank - 1) % every == 0 or rank == last:
            parts.append(_svg('<line class="grid" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>', x(rank), top - 4, height - 6))
            parts.append(_svg('<text class="axis" x="{}" y="{}" text-anchor="middle">{}</text>', x(rank), 14, rank))
    for number, place in enumerate(places):
        y = top + line * number + line / 2
        tone = "even" if place.tier is not None and place.tier % 2 == 0 else "odd"
        low, high = place.interval
        name = place.label if len(place.label) <= 28 else f"{place.label[:27]}…"
        parts += [
            _svg('<text class="name" x="{}" y="{}" text-anchor="end">{}</text>', left - 14, y + 4, name),
            _svg('<line class="strip {}" x1="{}" x2="{}" y1="{}" y2="{}"/>', tone, x(low) - 4, x(high) + 4, y, y),
            _svg('<circle class="at" cx="{}" cy="{}" r="3.5"/>', x(place.rank), y),
        ]
        if place.tier is not None:
            parts.append(_svg('<text class="axis" x="{}" y="{}">tier {}</text>', left + plot + 14, y + 4, place.tier))
    body = Markup("").join(parts)
    label = f"Rank intervals of {len(places)} methods; the columns rank, rank interval and tier of the table hold the same values"
    return Markup(
        '<svg class="ranks" role="img" aria-label="{}" width="{}" height="{}" viewBox="0 0 {} {}">{}</svg>'
    ).format(label, width, height, width, height, body)


def _drawing(label: str, parts: Sequence[Markup]) -> Markup:
    return Markup('<svg class="mark" role="img" aria-label="{}" width="{}" height="{}">{}</svg>').format(
        label, WIDTH, HEIGHT, Markup("").join(parts)
    )


def _line(start: float, end: float, kind: str) -> Markup:
    return _svg('<line class="{}" x1="{}" x2="{}" y1="{}" y2="{}"/>', kind, start, end, HEIGHT / 2, HEIGHT / 2)


def _tick(x: float, kind: str) -> Markup:
    half = {"zero": HEIGHT / 2, "mean": 6.0}.get(kind, 3.5)
    return _svg('<line class="{}" x1="{}" x2="{}" y1="{}" y2="{}"/>', kind, x, x, HEIGHT / 2 - half, HEIGHT / 2 + half)


def _dot(x: float, kind: str, radius: float = 2.5) -> Markup:
    return _svg('<circle class="{}" cx="{}" cy="{}" r="{}"/>', kind, x, HEIGHT / 2, radius)


def _svg(template: str, *values: str | float) -> Markup:
    return Markup(template).format(*(f"{value:.1f}" if isinstance(value, float) else value for value in values))
