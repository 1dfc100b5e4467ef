"""What grows in the pancreas: the lesion with its true and its annotated outline, the dilated duct and the biliary stent."""

from dataclasses import dataclass

import numpy as np

from dgbench.data.phantom.anatomy import Anatomy, Part
from dgbench.data.phantom.shapes import (
    Shape,
    Vector,
    box_around,
    curve,
    draw_field,
    ellipsoid,
    moved,
    rough,
    tube,
    union,
)

_EDGE = {"PDA": 2.5, "IPMN": 1.2, "PNET": 1.0}


@dataclass(frozen=True)
class Lesion:
    """One lesion and what comes with it.

    Attributes:
        kind: ``PDA`` (hypodense, infiltrating), ``IPMN`` (cystic, lobulated) or ``PNET`` (hyperenhancing, round).
        stent: whether a biliary stent passes the head.
        diameter: nominal diameter in mm.
        position: place along the gland, 0 = head, 1 = tail.
        part: the lesion as painted; its shape is the true outline.
        annotated: the outline as the center draws it.
        margin: mm by which the annotated outline lies outside (+) or inside (−) the true one.
        duct: the dilated duct upstream of the lesion, or None.
        tail: what is painted after the lesion (the stent).
    """

    kind: str
    stent: bool
    diameter: float
    position: float
    part: Part
    annotated: Shape
    margin: float
    duct: Part | None
    tail: tuple[Part, ...]


def choose_kind(u: float, shares: dict[str, float]) -> tuple[str, bool]:
    """Lesion kind and stent from one number in [0, 1) and the shares of the ``lesion`` axis; the rest is PDA without stent."""
    names = (("IPMN", "ipmn_share"), ("PNET", "pnet_share"), ("PDA", "stent_share"))
    total = max(1.0, sum(shares[share] for _, share in names))
    for kind, share in names:
        if u < shares[share] / total:
            return kind, kind == "PDA"
        u -= shares[share] / total
    return "PDA", False


def draw_lesion(
    rng: np.random.Generator,
    anatomy: Anatomy,
    shares: dict[str, float],
    contour: dict[str, float],
    diameters: tuple[float, float],
) -> Lesion:
    """Draw a lesion of one case.

    Args:
        rng: the case's lesion stream; the same numbers are drawn from it whatever the strengths.
        anatomy: where it grows.
        shares: parameters of the ``lesion`` axis.
        contour: parameters of the ``annotation`` axis. The margin is cut to ±40 % of the radius, so that no annotation vanishes.
        diameters: smallest and largest diameter in mm.
    """
    u_kind, u_place, u_duct = rng.random(3).tolist()
    offset, frame = rng.normal(0.0, 0.22, 3), _random_frame(rng)
    stretch, lobes = rng.uniform(0.85, 1.2, 3), rng.normal(0.0, 1.0, (5, 3))
    kind, stent = choose_kind(u_kind, shares)
    diameter = diameters[0] + (diameters[1] - diameters[0]) * shares["size"]
    radius = diameter / 2
    position = 0.12 + 0.25 * u_place if stent else 0.06 + 0.88 * u_place
    knot = round(position * (len(anatomy.line) - 1))
    center = anatomy.line[knot] + offset * anatomy.radii[knot]
    box = box_around(center, 1.75 * radius + 6)
    border = draw_field(rng, box, max(0.55 * radius, 4.0))
    size = stretch / np.cbrt(stretch.prod()) * radius
    shape, roughness = _outline(kind, center, size, frame, lobes)
    true = rough(shape, border, roughness * radius)
    margin = min(max(contour["margin"], -0.4 * radius), 0.4 * radius)
    drawn = moved(rough(shape, border, (1 - contour["smoothness"]) * roughness * radius), margin)
    duct = None
    if kind == "IPMN" or (kind == "PDA" and 0.1 < position < 0.75 and u_duct < 0.6):
        width = radius * 0.12 + (1.6 if kind == "IPMN" else 1.2)
        path = anatomy.line[knot:]
        duct = Part("fluid", tube(path, np.linspace(width, 0.6 * width, len(path))), box_around(path, width + 3))
    tail = (_stent(rng, anatomy),) if stent else ()
    return Lesion(kind, stent, diameter, position, Part(kind, true, box, _EDGE[kind]), drawn, margin, duct, tail)


def _outline(kind: str, center: Vector, size: Vector, frame: Vector, lobes: Vector) -> tuple[Shape, float]:
    """The undisturbed shape and its roughness as a share of the radius."""
    if kind == "IPMN":
        radius = float(size.mean())
        directions = lobes / np.linalg.norm(lobes, axis=1, keepdims=True)
        cysts = [ellipsoid((center + 0.5 * radius * d).tolist(), [0.58 * radius] * 3) for d in directions]
        return union([ellipsoid(center.tolist(), [0.66 * radius] * 3), *cysts]), 0.04
    return ellipsoid(center.tolist(), size.tolist(), frame), 0.15 if kind == "PDA" else 0.05


def _stent(rng: np.random.Generator, anatomy: Anatomy) -> Part:
    head = anatomy.line[len(anatomy.line) // 6]
    course = head + np.array([[34.0, -6.0, -8.0], [16.0, 0.0, -5.0], [0.0, 0.0, 0.0], [-16.0, 5.0, -14.0]])
    path = curve(course + rng.normal(0, 2, (4, 3)), 10)
    radius = rng.uniform(2.4, 3.4)
    return Part("stent", tube(path, np.full(10, radius)), box_around(path, radius + 3))


def _random_frame(rng: np.random.Generator) -> Vector:
    """Three orthonormal rows by Gram–Schmidt (no LAPACK, whose signs differ between builds)."""
    a, b = rng.normal(0.0, 1.0, (2, 3))
    first = a / np.sqrt((a**2).sum())
    second = b - (b @ first) * first
    second /= np.sqrt((second**2).sum())
    return np.stack([first, second, np.cross(first, second)])
