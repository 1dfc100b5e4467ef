"""One case of the phantom: plan it (grid, anatomy, lesion, style), then render it slab by slab."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgbench.data.phantom.anatomy import Anatomy, Layer, Part, draw_anatomy
from dgbench.data.phantom.appearance import AIR, Style, calibrate, draw_style, noise_slices, reconstruct
from dgbench.data.phantom.axes import LESION_FREE
from dgbench.data.phantom.lesions import Lesion, choose_kind, draw_lesion
from dgbench.data.phantom.recipe import PhantomRecipe, check_center, draw_axis, stream
from dgbench.data.phantom.shapes import Box, Field, Floats, Shape, draw_field, span_of
from dgbench.errors import DgbenchError

_SLAB_VOXELS = 6_000_000  # painted samples at a time: bounds the memory of a full-size case
_SAMPLE_STEP = 2.0  # mm between the samples that are averaged over the thickness of a slice
_BACKGROUND, _PANCREAS, _TUMOR = 0, 1, 2


@dataclass(frozen=True)
class Grid:
    """A voxel grid: shape (D,H,W), spacing in mm (z,y,x), position of its first voxel in the anatomy's frame and in the world (mm)."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    start: tuple[float, float, float]
    origin: tuple[float, float, float]

    def axis(self, number: int, oversampling: int = 1) -> Floats:
        """Coordinates in mm along one axis; with ``oversampling`` n, n samples spread evenly within each voxel."""
        step = self.spacing[number] / oversampling
        first = self.start[number] - (oversampling - 1) / 2 * step
        return (first + step * np.arange(self.shape[number] * oversampling)).astype(np.float32)


@dataclass(frozen=True)
class CasePlan:
    """All that is drawn for a case before a voxel is computed; ``lesion`` is None in lesion-free centers."""

    grid: Grid
    anatomy: Anatomy
    lesion: Lesion | None
    style: Style
    texture: Field


@dataclass(frozen=True)
class PhantomCase:
    """One rendered case.

    Attributes:
        image: (D,H,W) int16, HU in [−1024, 3071].
        label: (D,H,W) uint8 as annotated, 0 background, 1 pancreas, 2 tumor.
        true_label: the same with the true outline of the lesion.
        spacing: (z,y,x) in mm.
        origin: (z,y,x) of the first voxel in mm, LPS.
        direction: 3×3 row-major in (x,y,z) order, as SimpleITK has it.
        meta: what was drawn (lesion kind, stent, duct, diameter, …), JSON values.
    """

    image: NDArray[np.int16]
    label: NDArray[np.uint8]
    true_label: NDArray[np.uint8]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[float, ...]
    meta: dict[str, Any]


def plan_case(recipe: PhantomRecipe, center: str, index: int) -> CasePlan:
    """Draw everything about case ``index`` (≥ 0) of ``center``.

    Raises:
        DgbenchError: unknown center or negative index.
    """
    check_center(center)
    if index < 0:
        raise DgbenchError(f"phantom: case index {index} of center {center} is negative, it must be ≥ 0")
    spec = recipe.spec()
    anatomy = draw_anatomy(stream(recipe, center, index, "anatomy"), spec.gland)
    lesion = None
    if center not in LESION_FREE:
        lesion = draw_lesion(
            stream(recipe, center, index, "lesion"),
            anatomy,
            draw_axis(recipe, center, index, "lesion"),
            draw_axis(recipe, center, index, "annotation"),
            spec.diameter,
        )
    trunk = Box((-160.0, -110.0, -150.0), (160.0, 110.0, 150.0))
    texture = draw_field(stream(recipe, center, index, "texture"), trunk, 2.5 * (1 + spec.detail) / 2)
    return CasePlan(draw_grid(recipe, center, index), anatomy, lesion, draw_style(recipe, center, index), texture)


def draw_case(recipe: PhantomRecipe, center: str, index: int) -> PhantomCase:
    """Draw and render case ``index`` (≥ 0) of ``center``.

    Raises:
        DgbenchError: unknown center or negative index.
    """
    plan = plan_case(recipe, center, index)
    grid = plan.grid
    image = np.empty(grid.shape, dtype=np.int16)
    label, true_label = np.zeros(grid.shape, dtype=np.uint8), np.zeros(grid.shape, dtype=np.uint8)
    oversampling = int(np.ceil(grid.spacing[0] / _SAMPLE_STEP))
    depth = max(1, _SLAB_VOXELS // (grid.shape[1] * grid.shape[2] * oversampling))
    for first in range(0, grid.shape[0], depth):
        rows = slice(first, min(first + depth, grid.shape[0]))
        samples = grid.axis(0, oversampling)[rows.start * oversampling : rows.stop * oversampling]
        hu = _slice_means(_paint(plan, samples), oversampling)
        hu = reconstruct(hu, plan.style, grid.spacing[2])
        hu += noise_slices(recipe, center, index, plan.style, first, hu.shape, grid.spacing[2])
        image[rows] = np.rint(np.clip(calibrate(hu, plan.style), -1024, 3071)).astype(np.int16)
        _mark(plan, samples, oversampling, label[rows], true_label[rows])
    meta = _describe(plan, center, index, label, true_label)
    return PhantomCase(
        image, label, true_label, grid.spacing, grid.origin, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0), meta
    )


def case_name(center: str, index: int) -> str:
    """Case id of the ``index``-th case, counted from 0: ``MSD_0001`` is the first."""
    return f"{center}_{index + 1:04d}"


def lesion_type(recipe: PhantomRecipe, case: str) -> str | None:
    """What grows in a case, without rendering it: ``PDA``, ``PDA, stent``, ``IPMN`` or ``PNET``; None in a lesion-free center, or where
    ``case`` (``MSD/MSD_0001``) is not named like one of ``recipe``."""
    center, _, name = case.rpartition("/")
    if center in LESION_FREE or center not in recipe.counts():
        return None
    number = name.removeprefix(f"{center}_")
    if not number.isdigit() or not 1 <= int(number) <= recipe.counts()[center]:
        return None
    index = int(number) - 1
    u_kind = float(stream(recipe, center, index, "lesion").random())
    kind, stent = choose_kind(u_kind, draw_axis(recipe, center, index, "lesion"))
    return f"{kind}, stent" if stent else kind


def annotation_ceiling(recipe: PhantomRecipe, center: str, n: int) -> float:
    """Mean DSC in [0, 1] between the true and the annotated lesion of the first ``n`` cases: what the annotation style alone costs."""
    scores = []
    for index in range(n):
        case = draw_case(recipe, center, index)
        true, drawn = case.true_label == _TUMOR, case.label == _TUMOR
        scores.append(2 * float((true & drawn).sum()) / float(true.sum() + drawn.sum()))
    return float(np.mean(scores))


def draw_grid(recipe: PhantomRecipe, center: str, index: int) -> Grid:
    """The voxel grid of one case: spacing from the ``thickness`` axis, scan length, position and world origin from the case."""
    spec, values = recipe.spec(), draw_axis(recipe, center, index, "thickness")
    rng = stream(recipe, center, index, "grid")
    pixel = round(values["spacing"] * spec.spacing_gain, 4)
    thickness = round(spec.thickness_map[0] + spec.thickness_map[1] * values["thickness"], 3)
    slices = round(rng.uniform(*spec.coverage) / thickness)
    slices = min(max(slices, spec.slices[0]), spec.slices[1])
    rows, columns = (spec.pixels, spec.pixels) if spec.extent is None else (round(side / pixel) for side in spec.extent)
    shape, spacing = (slices, rows, columns), (thickness, pixel, pixel)
    middle = np.array([5.0, 0.0, 0.0]) + rng.uniform(-5.0, 5.0, 3)
    start = middle - (np.array(shape) - 1) / 2 * np.array(spacing)
    world = start + np.round(rng.uniform([-900.0, -180.0, -20.0], [300.0, -80.0, 20.0]), 2)
    return Grid(shape, spacing, _triple(start), _triple(np.round(world, 3)))


def _triple(values: NDArray[np.float64]) -> tuple[float, float, float]:
    z, y, x = values.tolist()
    return (z, y, x)


def _block(
    grid: Grid, samples: Floats, box: Box
) -> tuple[tuple[slice, slice, slice], tuple[Floats, Floats, Floats]] | None:
    """Index ranges of ``box`` within a slab and the coordinates there; None if they do not meet."""
    axes = (samples, grid.axis(1), grid.axis(2))
    spans = [span_of(axis, low, high) for axis, low, high in zip(axes, box.low, box.high, strict=True)]
    if any(span.start >= span.stop for span in spans):
        return None
    return (spans[0], spans[1], spans[2]), (axes[0][spans[0]], axes[1][spans[1]], axes[2][spans[2]])


def _paint(plan: CasePlan, samples: Floats) -> Floats:
    """True HU at the sampled levels, (S,H,W): parts over one another, each with a soft border of at least one pixel."""
    grid, lesion = plan.grid, plan.lesion
    hu = np.full((len(samples), *grid.shape[1:]), AIR, dtype=np.float32)
    texture = plan.texture(samples, grid.axis(1), grid.axis(2))
    parts: list[Part] = [*plan.anatomy.parts, plan.anatomy.pancreas]
    if lesion is not None:
        parts += [*([lesion.duct] if lesion.duct else []), lesion.part, *lesion.tail]
    for part in parts:
        block = _block(grid, samples, part.box)
        if block is None:
            continue
        where, coordinates = block
        surface = part.shape(*coordinates)
        sharpness = np.float32(-1 / max(part.edge, grid.spacing[2]))
        for layer in (Layer(part.tissue, 0.0), *part.inner):
            weight = surface + np.float32(layer.depth)
            if layer.level is not None:
                np.maximum(weight, (coordinates[1] - np.float32(layer.level))[None, :, None], out=weight)
            weight *= sharpness
            weight += np.float32(0.5)
            np.clip(weight, 0, 1, out=weight)
            value = texture[where] * np.float32(plan.style.texture.get(layer.tissue, 0.0))
            value += np.float32(plan.style.hu[layer.tissue])
            value -= hu[where]
            value *= weight
            hu[where] += value
    return hu


def _mark(
    plan: CasePlan, samples: Floats, oversampling: int, label: NDArray[np.uint8], true_label: NDArray[np.uint8]
) -> None:
    """Write the labels of a slab: a voxel belongs to what fills at least half of its thickness."""
    outlines: list[tuple[int, Shape, Box, tuple[NDArray[np.uint8], ...]]] = [
        (_PANCREAS, plan.anatomy.pancreas.shape, plan.anatomy.pancreas.box, (label, true_label))
    ]
    if plan.lesion is not None:
        box = plan.lesion.part.box
        outlines += [
            (_TUMOR, plan.lesion.annotated, box, (label,)),
            (_TUMOR, plan.lesion.part.shape, box, (true_label,)),
        ]
    for value, shape, box, targets in outlines:
        whole = Box((-np.inf, *box.low[1:]), (np.inf, *box.high[1:]))
        block = _block(plan.grid, samples, whole)
        if block is None or samples[-1] < box.low[0] or samples[0] > box.high[0]:
            continue
        (_, ys, xs), coordinates = block
        inside = _slice_means((shape(*coordinates) < 0).astype(np.float32), oversampling) >= 0.5
        for target in targets:
            target[:, ys, xs][inside] = value


def _slice_means(samples: Floats, oversampling: int) -> Floats:
    if oversampling == 1:
        return samples
    means: Floats = samples.reshape(-1, oversampling, *samples.shape[1:]).mean(axis=1, dtype=np.float32)
    return means


def _describe(
    plan: CasePlan, center: str, index: int, label: NDArray[np.uint8], true_label: NDArray[np.uint8]
) -> dict[str, Any]:
    lesion, style = plan.lesion, plan.style
    voxel_ml = float(np.prod(plan.grid.spacing)) / 1000
    return {
        "center": center,
        "index": index,
        "lesion": lesion.kind if lesion else None,
        "stent": bool(lesion and lesion.stent),
        "duct": bool(lesion and lesion.duct),
        "diameter_mm": round(lesion.diameter, 3) if lesion else None,
        "position": round(lesion.position, 4) if lesion else None,
        "margin_mm": round(lesion.margin, 3) if lesion else None,
        "pancreas_ml": round(float((label > 0).sum()) * voxel_ml, 3),
        "tumor_ml": round(float((label == _TUMOR).sum()) * voxel_ml, 3),
        "true_tumor_ml": round(float((true_label == _TUMOR).sum()) * voxel_ml, 3),
        "noise_sd": round(style.noise_sd, 3),
        "pancreas_hu": round(style.hu["pancreas"], 2),
        "lesion_hu": round(style.hu[lesion.kind], 2) if lesion else None,
    }
