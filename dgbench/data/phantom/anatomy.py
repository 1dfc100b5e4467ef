"""The upper abdomen of one case: organs as parts that are painted in order, each with a tissue, a shape and a bounding box.

Coordinates are (z, y, x) in mm about the middle of the trunk at the level of the pancreas: z up, y to the back, x to the patient's left.
Nothing here depends on a center or on a strength: the same case index has the same anatomy in every style.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dgbench.data.phantom.shapes import (
    Box,
    Floats,
    Shape,
    Vector,
    box_around,
    column,
    curve,
    draw_field,
    ellipsoid,
    overlap,
    rough,
    tube,
)

_EVERYWHERE = Box((-400.0, -400.0, -400.0), (400.0, 400.0, 400.0))


@dataclass(frozen=True)
class Layer:
    """What lies ``depth`` mm under the surface of a part, only in front of the plane y = ``level`` mm if that is given (gas)."""

    tissue: str
    depth: float
    level: float | None = None


@dataclass(frozen=True)
class Part:
    """One thing to paint: ``tissue`` names its HU (appearance.py), ``edge`` is the width in mm over which its border fades.

    ``inner`` layers are painted into it in order.
    """

    tissue: str
    shape: Shape
    box: Box
    edge: float = 1.0
    inner: tuple[Layer, ...] = ()


@dataclass(frozen=True)
class Anatomy:
    """The organs behind and around the pancreas (``parts``, in painting order), the pancreas, and its centreline.

    Attributes:
        parts: everything but pancreas, lesion, duct and stent.
        pancreas: the gland.
        line: centreline from head to tail, (n, 3) mm.
        radii: radius of the gland along it, (n,) mm.
    """

    parts: tuple[Part, ...]
    pancreas: Part
    line: Vector
    radii: Vector


def draw_anatomy(rng: np.random.Generator, gland: float) -> Anatomy:
    """Draw one anatomy; ``gland`` is a factor on the radius of the pancreas."""
    trunk, bones, cavity = _trunk(rng)
    shift = rng.normal(0.0, 4.0, 3)
    viscera = [*_clutter(rng), *_solid_organs(rng), *_bowel(rng, shift)]
    held = [replace(part, shape=overlap(part.shape, cavity)) for part in viscera]
    line, radii, pancreas = _pancreas(rng, shift, gland)
    vessels = _vessels(rng, shift, line, radii)
    return Anatomy((*trunk, *bones, *held, *vessels), pancreas, line, radii)


def _trunk(rng: np.random.Generator) -> tuple[list[Part], list[Part], Shape]:
    """Skin, fat and muscle; spine, ribs and back muscles; and the cavity that holds the viscera."""
    half_x, half_y = rng.uniform(126, 141), rng.uniform(88, 102)
    fat, muscle = rng.uniform(6, 20), rng.uniform(9, 13)
    taper = ellipsoid((0, 0, 0), (900, half_y, half_x))
    lumps = draw_field(rng, Box((-300, -130, -180), (300, 130, 180)), 60.0)
    outline = rough(taper, lumps, 2.5)
    fibres = draw_field(rng, Box((-300, -130, -180), (300, 130, 180)), 35.0)
    wall = rough(ellipsoid((0, 2, 0), (900, half_y - fat, half_x - 0.8 * fat)), fibres, 1.5)
    bend = rng.uniform(-6, 6)

    def spine_axis(z: Floats) -> tuple[Floats, Floats]:
        bow = (np.float32(bend) * np.sin(z / np.float32(90))).astype(np.float32)
        return np.float32(half_y - 56) + np.float32(0.5) * bow, bow

    def canal_axis(z: Floats) -> tuple[Floats, Floats]:
        y, x = spine_axis(z)
        return y + np.float32(25), x

    def process_axis(z: Floats) -> tuple[Floats, Floats]:
        y, x = spine_axis(z)
        return y + np.float32(35), x

    height, phase = rng.uniform(31, 37), rng.uniform(0, 35)
    body = column(spine_axis, (rng.uniform(15, 18), rng.uniform(19, 23)))

    def discs(z: Floats, y: Floats, x: Floats) -> Floats:
        saw = np.abs((z + np.float32(phase)) % np.float32(height) - np.float32(height / 2)) - np.float32(4)
        result: Floats = np.maximum(body(z, y, x), saw[:, None, None])
        return result

    back = half_y - 36
    muscles = [
        Part("muscle", column(_upright(back, side * 38), (20, 25)), _tower(back, side * 38, 28)) for side in (-1, 1)
    ]
    psoas = [
        Part(
            "muscle",
            rough(ellipsoid((-70, back - 20, side * 38), (75, 15, 14)), fibres, 1.0),
            _tower(back - 20, side * 38, 24),
        )
        for side in (-1, 1)
    ]
    trunk = [
        Part("fat", outline, _EVERYWHERE),
        Part("muscle", wall, _EVERYWHERE, inner=(Layer("fat", muscle),)),
    ]
    ribs = _ribs(rng, half_y - fat - 6, half_x - 0.8 * fat - 6)
    spine_box = Box((-400, half_y - 85, -45), (400, half_y + 10, 45))
    spine = [
        Part("marrow", column(process_axis, (16, 6)), spine_box),
        Part("cortex", body, spine_box, inner=(Layer("marrow", 2.5),)),
        Part("disc", discs, spine_box),
        Part("fluid", column(canal_axis, (8, 9)), spine_box),
    ]
    cavity = ellipsoid((0, 2, 0), (900, half_y - fat - muscle - 3, half_x - 0.8 * fat - muscle - 3))
    return trunk, [*muscles, *psoas, *spine, *ribs], cavity


def _ribs(rng: np.random.Generator, half_y: float, half_x: float) -> list[Part]:
    """Ribs that run around the wall from the spine and fall to the front."""
    gap, start, angle = rng.uniform(22, 27), rng.uniform(5, 30), np.linspace(0.35, 2.1, 14)
    ribs = []
    for level in range(5):
        for side in (-1, 1):
            fall = start + gap * level - 38 * (angle - angle[0])
            points = np.stack([fall, half_y * np.cos(angle), side * half_x * np.sin(angle)], axis=1)
            ribs.append(Part("cortex", tube(points, np.full(14, 3.6)), box_around(points, 6), 2.0))
    return ribs


def _clutter(rng: np.random.Generator) -> list[Part]:
    """Small mesenteric vessels: thin winding tubes in the fat around the gland."""
    parts = []
    for _ in range(12):
        center = np.array([rng.uniform(-70, 70), rng.uniform(-55, 20), rng.uniform(-60, 75)])
        points = curve(center + rng.normal(0, 16, (4, 3)), 8)
        parts.append(_vessel("vein" if rng.random() < 0.7 else "artery", points, rng.uniform(1.5, 3.0)))
    return parts


def _solid_organs(rng: np.random.Generator) -> list[Part]:
    liver_z = rng.uniform(30, 45)
    right = _blob(rng, "liver", (liver_z, -8, -72), (rng.uniform(58, 72), 62, 50), 4.0, pitch=40.0)
    left = _blob(rng, "liver", (liver_z + 22, -52, -18), (34, 24, rng.uniform(42, 62)), 3.0, pitch=40.0)
    gallbladder = _blob(rng, "bile", (rng.uniform(-14, 4), -38, -58), (20, 15, rng.uniform(8, 14)), 1.5)
    spleen = _blob(
        rng, "spleen", (rng.uniform(35, 50), 34, 92), (rng.uniform(34, 46), rng.uniform(30, 38), 22), 3.0, pitch=35.0
    )
    kidneys: list[Part] = []
    for side, level in ((-1, -32), (1, -16)):
        center = (level + rng.normal(0, 6), 46 + rng.normal(0, 3), side * (62 + rng.normal(0, 3)))
        size = rng.uniform(0.9, 1.1)
        kidneys.append(_blob(rng, "kidney", center, (50 * size, 25 * size, 23 * size), 1.5))
        hilum = (center[0], center[1] - 5, center[2] - side * 15 * size)
        kidneys.append(_blob(rng, "fat", hilum, (19 * size, 9 * size, 12 * size), 2.0))
    lungs = [_blob(rng, "lung", (rng.uniform(135, 150), 12, side * 68), (68, 66, 56), 2.0) for side in (-1, 1)]
    return [right, left, gallbladder, *kidneys, spleen, *lungs]


def _bowel(rng: np.random.Generator, shift: Vector) -> list[Part]:
    parts: list[Part] = []
    stomach = np.array([32, -46, 48]) + rng.normal(0, 5, 3)
    radii = np.array([38, rng.uniform(20, 30), 36]) * rng.uniform(0.8, 1.1)
    shape = rough(ellipsoid(stomach.tolist(), radii.tolist()), draw_field(rng, box_around(stomach, 60), 28.0), 3.0)
    parts.append(_hollow(shape, box_around(stomach, 62), rng.uniform(4, 6), stomach[1] - rng.uniform(0, 14)))
    for _ in range(int(rng.integers(11, 16))):
        center = np.array([rng.uniform(-95, -28), rng.uniform(-62, 0), rng.uniform(-78, 88)])
        size = rng.uniform(11, 17)
        points = curve(center + rng.normal(0, 15, (4, 3)), 10)
        loop = rough(tube(points, np.full(10, size)), draw_field(rng, box_around(points, size + 8), 16.0), 1.5)
        gas = points[:, 1].min() - (rng.uniform(-4, 4) if rng.random() < 0.4 else 40)
        parts.append(_hollow(loop, box_around(points, size + 6), rng.uniform(2, 3), float(gas)))
    colon = curve(
        np.array([[-60, -20, -96], [-25, -44, -76], [-36, -56, 0], [-20, -46, 70], [10, 0, 100]])
        + rng.normal(0, 5, (5, 3)),
        20,
    )
    width = np.full(20, rng.uniform(11, 16))
    haustra = rough(tube(colon, width), draw_field(rng, box_around(colon, 26), 18.0), 2.5)
    parts.append(_hollow(haustra, box_around(colon, 26), 2.5, float(colon[:, 1].min() + rng.uniform(5, 25))))
    loop_c = np.array([[22, -26, -28], [16, -8, -62], [-16, 2, -66], [-44, 6, -56], [-54, 8, -20], [-46, 4, 18]])
    line = curve(loop_c + shift + rng.normal(0, 3, (6, 3)), 20)
    duodenum = rough(tube(line, np.full(20, rng.uniform(10, 13))), draw_field(rng, box_around(line, 22), 14.0), 1.2)
    gas = line[:, 1].min() + rng.uniform(-14, 6)
    parts.append(_hollow(duodenum, box_around(line, 20), rng.uniform(2, 3.2), float(gas)))
    return parts


def _vessels(rng: np.random.Generator, shift: Vector, line: Vector, radii: Vector) -> list[Part]:
    aorta = curve(np.array([[-200, 16, 8], [-60, 14, 8], [40, 16, 9], [200, 22, 6]]) + rng.normal(0, 2, 3), 24)
    cava = curve(np.array([[-200, 16, -22], [-60, 14, -23], [40, 12, -26], [200, 4, -30]]) + rng.normal(0, 2, 3), 24)
    neck = line[len(line) // 4]
    trunk = np.array(
        [
            [-130, -10, -6],
            [-60, -8, -8],
            [neck[0] - 6, neck[1] + 17, neck[2] + 2],
            [neck[0] + 22, neck[1] + 18, -28],
            [48, -8, -52],
        ]
    )
    portal = curve(trunk + rng.normal(0, 1.5, (5, 3)), 20)
    behind = line[len(line) // 4 :: 3] + np.array([3.0, 0.0, 0.0])
    behind[:, 1] += radii[len(line) // 4 :: 3] + 1.5
    splenic = curve(np.vstack([portal[10], behind[1:], [40 + shift[0], 32, 78]]), 20)
    artery = curve(np.array([[-130, -8, 10], [-50, -6, 9], [-8, 2, 8], [8, 14, 8]]) + rng.normal(0, 1, 3), 12)
    return [
        _vessel("artery", aorta, rng.uniform(9, 12)),
        _vessel("vein", cava, rng.uniform(10, 13)),
        _vessel("artery", artery, rng.uniform(3.2, 4.2)),
        _vessel("vein", portal, rng.uniform(5.5, 7.5)),
        _vessel("vein", splenic, rng.uniform(3.2, 4.6)),
    ]


def _pancreas(rng: np.random.Generator, shift: Vector, gland: float) -> tuple[Vector, Vector, Part]:
    controls = np.array(
        [[-24, 0, -34], [-8, -4, -33], [4, -20, -10], [14, -22, 18], [24, -6, 50], [rng.uniform(26, 46), 12, 76]]
    )
    line = curve(controls + shift + rng.normal(0, 3.0, (6, 3)), 36)
    profile = np.interp(np.linspace(0, 1, 36), [0, 0.18, 0.36, 0.6, 0.85, 1.0], [9.0, 12.5, 8.5, 9.5, 9.0, 6.0])
    radii = profile * gland * rng.uniform(0.88, 1.12)
    box = box_around(line, float(radii.max()) + 8)
    lobules = draw_field(rng, box, 8.0 * gland)
    shape = rough(tube(line, radii), lobules, rng.uniform(0.8, 1.7) * gland)
    return line, radii, Part("pancreas", shape, box)


def _hollow(shape: Shape, box: Box, wall: float, gas_level: float) -> Part:
    return Part("wall", shape, box, inner=(Layer("content", wall), Layer("gas", wall, gas_level)))


def _blob(
    rng: np.random.Generator,
    tissue: str,
    center: Sequence[float],
    radii: Sequence[float],
    amplitude: float,
    pitch: float = 20.0,
) -> Part:
    box = box_around(center, 0.0)
    grown = Box(
        (box.low[0] - radii[0] - 9, box.low[1] - radii[1] - 9, box.low[2] - radii[2] - 9),
        (box.high[0] + radii[0] + 9, box.high[1] + radii[1] + 9, box.high[2] + radii[2] + 9),
    )
    return Part(tissue, rough(ellipsoid(center, radii), draw_field(rng, grown, pitch), amplitude), grown)


def _vessel(tissue: str, points: Vector, radius: float) -> Part:
    return Part(tissue, tube(points, np.full(len(points), radius)), box_around(points, radius + 3))


def _upright(y: float, x: float) -> Callable[[Floats], tuple[Floats, Floats]]:
    return lambda z: (np.full_like(z, y), np.full_like(z, x))


def _tower(y: float, x: float, radius: float) -> Box:
    return Box((-400, y - radius, x - radius), (400, y + radius, x + radius))
