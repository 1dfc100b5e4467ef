"""Shapes as approximate signed distances in mm, and smooth random fields, both evaluated on separable grids.

A shape is a function of the three coordinate vectors of a grid block, (D,), (H,) and (W,) in mm, and returns a float32 array (D,H,W)
that is negative inside. Only values within ``REACH`` of the boundary are distances; farther away they are just larger.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import CubicSpline

Floats = NDArray[np.float32]
Vector = NDArray[np.float64]
Shape = Callable[[Floats, Floats, Floats], Floats]
REACH = 8.0
_SPLINE_SD = (
    151 / 315
) ** 1.5  # root of the mean energy of the 3D cubic B-spline weights: iid unit coefficients give this sd


@dataclass(frozen=True)
class Box:
    """An axis-aligned block of space in mm, (z, y, x)."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]

    def grown(self, margin: float) -> "Box":
        """The box with ``margin`` mm added on every side."""
        return Box(
            (self.low[0] - margin, self.low[1] - margin, self.low[2] - margin),
            (self.high[0] + margin, self.high[1] + margin, self.high[2] + margin),
        )


def box_around(points: ArrayLike, radius: float) -> Box:
    """The smallest box that holds the points (n, 3) in mm and ``radius`` around them."""
    array = np.asarray(points, dtype=np.float64).reshape(-1, 3)
    low, high = (array.min(axis=0) - radius).tolist(), (array.max(axis=0) + radius).tolist()
    return Box((low[0], low[1], low[2]), (high[0], high[1], high[2]))


def span_of(coordinates: Floats, low: float, high: float) -> slice:
    """Indices of the sorted ``coordinates`` that lie in [low, high]."""
    return slice(int(np.searchsorted(coordinates, low)), int(np.searchsorted(coordinates, high, side="right")))


@dataclass(frozen=True)
class Field:
    """A smooth random field: cubic B-spline over a lattice of normal coefficients, about zero mean and unit variance."""

    origin: tuple[float, float, float]
    pitch: float
    coefficients: Floats

    def __call__(self, z: Floats, y: Floats, x: Floats) -> Floats:
        """Values on the grid z × y × x, (D,H,W); constant beyond the lattice."""
        values = self.coefficients
        for axis, coordinates in enumerate((z, y, x)):
            values = self._along(values, axis, coordinates)
        return values

    def _along(self, values: Floats, axis: int, coordinates: Floats) -> Floats:
        position = np.clip((coordinates - self.origin[axis]) / self.pitch, 0, values.shape[axis] - 3.001)
        base = position.astype(np.intp)
        f = (position - base).astype(np.float32)
        weights = ((1 - f) ** 3, 3 * f**3 - 6 * f**2 + 4, -3 * f**3 + 3 * f**2 + 3 * f + 1, f**3)
        shape = [1, 1, 1]
        shape[axis] = len(coordinates)
        total: Floats | None = None
        for k, weight in enumerate(weights):
            term = np.take(values, base + k, axis=axis)
            term *= (weight / np.float32(6)).reshape(shape)
            total = term if total is None else np.add(total, term, out=total)
        assert total is not None
        return total


def draw_field(rng: np.random.Generator, box: Box, pitch: float) -> Field:
    """A random field with lattice constant ``pitch`` mm that covers ``box``."""
    counts = [int(np.ceil((high - low) / pitch)) + 4 for low, high in zip(box.low, box.high, strict=True)]
    coefficients = (rng.standard_normal(counts) / _SPLINE_SD).astype(np.float32)
    return Field(box.low, pitch, coefficients)


def ellipsoid(center: Sequence[float], radii: Sequence[float], frame: Vector | None = None) -> Shape:
    """An ellipsoid; ``frame`` (3, 3) holds its axes as rows in (z, y, x), the grid's own axes by default."""

    def distance(z: Floats, y: Floats, x: Floats) -> Floats:
        dz, dy, dx = _offsets(center, z, y, x)
        if frame is not None:
            turned = frame.astype(np.float32)
            dz, dy, dx = (row[0] * dz + row[1] * dy + row[2] * dx for row in turned)
        squares = [(d / np.float32(r)) ** 2 for d, r in zip((dz, dy, dx), radii, strict=True)]
        norm = np.sqrt(squares[0] + squares[1] + squares[2])
        slope = np.sqrt(sum(s / np.float32(r) ** 2 for s, r in zip(squares, radii, strict=True)))
        result: Floats = np.where(norm < 1e-3, -np.float32(min(radii)), norm * (norm - 1) / np.maximum(slope, 1e-6))
        return result

    return distance


def column(center: Callable[[Floats], tuple[Floats, Floats]], radii: tuple[float, float]) -> Shape:
    """An elliptic column along z: ``center`` maps z (D,) to the (y, x) of its axis, ``radii`` are (y, x)."""

    def distance(z: Floats, y: Floats, x: Floats) -> Floats:
        cy, cx = center(z)
        qy = (y[None, :, None] - cy[:, None, None]) / np.float32(radii[0])
        qx = (x[None, None, :] - cx[:, None, None]) / np.float32(radii[1])
        norm: Floats = np.sqrt(qy**2 + qx**2)
        slope = np.sqrt((qy / np.float32(radii[0])) ** 2 + (qx / np.float32(radii[1])) ** 2)
        result: Floats = np.where(norm < 1e-3, -np.float32(min(radii)), norm * (norm - 1) / np.maximum(slope, 1e-6))
        return result

    return distance


def tube(points: Vector, radii: Vector) -> Shape:
    """A tapered tube along the polyline ``points`` (n, 3) in mm with ``radii`` (n,) in mm."""

    def distance(z: Floats, y: Floats, x: Floats) -> Floats:
        result = np.full((len(z), len(y), len(x)), REACH, dtype=np.float32)
        for a, b, ra, rb in zip(points[:-1], points[1:], radii[:-1], radii[1:], strict=True):
            near = float(max(ra, rb)) + REACH
            low, high = np.minimum(a, b) - near, np.maximum(a, b) + near
            block = tuple(span_of(c, lo, hi) for c, lo, hi in zip((z, y, x), low, high, strict=True))
            dz, dy, dx = _offsets(a.tolist(), z[block[0]], y[block[1]], x[block[2]])
            uz, uy, ux = (np.float32(v) for v in b - a)
            t = np.clip((dz * uz + dy * uy + dx * ux) / max(uz * uz + uy * uy + ux * ux, np.float32(1e-6)), 0, 1)
            gap = np.sqrt((dz - t * uz) ** 2 + (dy - t * uy) ** 2 + (dx - t * ux) ** 2)
            gap -= np.float32(ra) + t * np.float32(rb - ra)
            np.minimum(result[block], gap, out=result[block])
        return result

    return distance


def rough(shape: Shape, field: Field, amplitude: float) -> Shape:
    """``shape`` with its boundary moved by ``amplitude`` mm (one standard deviation) of ``field``."""
    return lambda z, y, x: shape(z, y, x) + np.float32(amplitude) * field(z, y, x)


def moved(shape: Shape, margin: float) -> Shape:
    """``shape`` grown (positive ``margin``) or shrunk (negative) by that many mm."""
    return lambda z, y, x: shape(z, y, x) - np.float32(margin)


def overlap(first: Shape, second: Shape) -> Shape:
    """What two shapes have in common."""
    return lambda z, y, x: np.maximum(first(z, y, x), second(z, y, x))


def union(shapes: Sequence[Shape]) -> Shape:
    """The union of several shapes."""

    def distance(z: Floats, y: Floats, x: Floats) -> Floats:
        result = shapes[0](z, y, x)
        for shape in shapes[1:]:
            result = np.minimum(result, shape(z, y, x))
        return result

    return distance


def curve(controls: ArrayLike, count: int) -> Vector:
    """``count`` points (count, 3) on the natural cubic spline through the control points (n, 3), uniform in the parameter."""
    array = np.asarray(controls, dtype=np.float64)
    spline = CubicSpline(np.linspace(0, 1, len(array)), array, bc_type="natural")
    return np.asarray(spline(np.linspace(0, 1, count)), dtype=np.float64)


def _offsets(center: Sequence[float], z: Floats, y: Floats, x: Floats) -> tuple[Floats, Floats, Floats]:
    return (
        (z - np.float32(center[0]))[:, None, None],
        (y - np.float32(center[1]))[None, :, None],
        (x - np.float32(center[2]))[None, None, :],
    )
