"""Overlay figures in the layout of the dual-task paper's Fig. 5: one case per row, one step of the cascade per column.

Columns: the whole slice with the field of the next panels; the field with the reference; with the predicted pancreas; with the
coarse and with the fine tumor prediction; and the lesion enlarged with reference, coarse and fine together. Reference contours are
solid, predictions dashed, so that the figure also reads without colours, which are chosen to be told apart by colour-blind readers
(Okabe and Ito). Panels are drawn in mm: their aspect is that of the patient whatever the voxel spacing.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from dgbench.atomic import replacing
from dgbench.errors import DgbenchError
from dgbench.leaderboard.records import OFFICIAL
from dgbench.leaderboard.sheets import BANNERS
from dgbench.store.folder import RunFolder
from dgbench.store.slices import CaseSlice, Mask, slice_file

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

COLOURS = {
    "reference pancreas": "#009E73",
    "reference tumor": "#D55E00",
    "predicted pancreas": "#F0E442",
    "coarse tumor": "#CC79A7",
    "fine tumor": "#56B4E9",
}
COLUMNS = ("Image", "Reference", "Pancreas", "Tumor coarse", "Tumor fine", "Lesion")
FIELD_MARGIN_MM = 25.0
ZOOM_MARGIN_MM = 14.0
SCALE_BARS_MM = (100.0, 50.0, 20.0, 10.0, 5.0, 2.0, 1.0)
DPI = 220
RANKS = ("best", "median", "worst")


class Field(NamedTuple):
    """A square field of view in mm: center (y, x) and side."""

    y: float
    x: float
    side: float


def draw_run_overlay(run: RunFolder) -> None:
    """figures/overlay.png of a finished run: the best, the median and the worst held-out case of the last stage's official rows (fewer
    where there are fewer cases); nothing where the run kept no slices."""
    shown = [slice_file(run.path, case) for case in exemplary(official_dsc(run.cases(), run.own_stages[-1])).values()]
    if shown and all(path.is_file() for path in shown):
        title = f"{run.spec.method.name}, held-out {run.spec.heldout}: best, median and worst case"
        slices = [CaseSlice.load(path) for path in shown]
        draw_overlays(slices, run.path / "figures" / "overlay.png", kind=run.spec.protocol.kind, title=title)


def official_dsc(rows: "pd.DataFrame", stage: str) -> "pd.Series[float]":
    """DSC in [0, 1] by case of the held-out rows of ``stage`` in the official view (`Seg`), without cases that failed or have none."""
    official = (rows["role"] == "held-out") & (rows["stage"] == stage) & ~rows["setting"].str.endswith("-Mask")
    official &= (rows["checkpoint"] == OFFICIAL.checkpoint) & (rows["threshold"] == OFFICIAL.threshold)
    official &= rows["dsc"].notna() & ~rows["failed"]
    return rows[official].set_index("case")["dsc"]


def exemplary(scores: "pd.Series[float]") -> dict[str, str]:
    """The cases with the best, the median and the worst of ``scores`` (by case), in this order; of equal scores the first case; fewer where
    there are fewer cases, of two the best and the worst."""
    cases = [str(case) for case, _ in sorted(scores.items(), key=lambda item: (-item[1], str(item[0])))]
    if len(cases) < len(RANKS):
        return dict(zip(("best", "worst"), cases, strict=False))
    return dict(zip(RANKS, (cases[0], cases[len(cases) // 2], cases[-1]), strict=True))


def draw_overlays(
    cases: Sequence[CaseSlice], path: Path, *, kind: Literal["phantom", "patient"], title: str = "", dpi: int = DPI
) -> None:
    """Draw ``cases``, one per row, and write the figure (PNG or PDF by the suffix of ``path``), complete or not at all.

    ``kind`` sets the first line of the figure, ``title`` follows it; ``dpi`` its resolution (a row is 11 inches wide).

    Raises:
        DgbenchError: there is no case, or the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not cases:
        raise DgbenchError(f"overlay {path.name}: no case to draw")
    panel, left, top, bottom, gap = 1.75, 0.32, 0.74, 0.42, 0.04
    width = left + len(COLUMNS) * (panel + gap)
    height = top + len(cases) * (panel + gap) + bottom
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.subplots(
        len(cases),
        len(COLUMNS),
        squeeze=False,
        gridspec_kw={
            "left": left / width,
            "right": 1 - gap / width,
            "top": 1 - top / height,
            "bottom": bottom / height,
            "wspace": gap / panel,
            "hspace": gap / panel,
        },
    )
    for axes, case in zip(grid, cases, strict=True):
        _draw_case(axes, case)
    for axis, name in zip(grid[0], COLUMNS, strict=True):
        axis.set_title(name, fontsize=8, pad=3)
    heading = f"{BANNERS[kind]} · {title}" if title else BANNERS[kind]
    figure.text(
        left / width, 1 - 0.18 / height, heading, fontsize=8.5, fontweight="bold", va="center", parse_math=False
    )
    note = "DSC in points (0–100), of the whole volume on the grid of the scan, as in tables"
    if not all(case.native for case in cases):
        note = "DSC in points (0–100), of the whole volume resampled to the task grid; tables give that on the grid of the scan"
    figure.text(left / width, 1 - 0.37 / height, note, fontsize=7, va="center")
    figure.legend(
        handles=_legend(), loc="lower center", ncols=len(COLOURS), fontsize=7, frameon=False, handlelength=2.6
    )
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=dpi, metadata={"Title": heading})


def _draw_case(axes: Sequence["Axes"], case: CaseSlice) -> None:
    image, reference, pancreas, coarse, fine, lesion = axes
    whole = whole_field(case)
    view = field_around(
        case,
        (case.reference_pancreas, case.reference_tumor, case.pancreas, case.tumor_coarse, case.tumor_fine),
        FIELD_MARGIN_MM,
        whole,
    )
    zoom = field_around(case, lesion_masks(case), ZOOM_MARGIN_MM, view)

    draw_slice(image, case, whole)
    draw_rectangle(image, view)
    image.set_ylabel(case.case, fontsize=7, labelpad=3)
    draw_caption(image, f"slice {case.slice_index + 1} of {case.n_slices}")

    draw_slice(reference, case, view)
    draw_contour(reference, case, case.reference_pancreas, "reference pancreas")
    draw_contour(reference, case, case.reference_tumor, "reference tumor")
    if not case.reference_tumor.any():
        draw_caption(reference, "no tumor on this slice")

    predictions = (
        (
            pancreas,
            "pancreas",
            case.pancreas,
            "predicted pancreas",
            case.reference_pancreas | case.reference_tumor,
            "reference pancreas",
        ),
        (coarse, "coarse", case.tumor_coarse, "coarse tumor", case.reference_tumor, "reference tumor"),
        (fine, "fine", case.tumor_fine, "fine tumor", case.reference_tumor, "reference tumor"),
    )
    for axis, key, mask, colour, truth, truth_colour in predictions:
        draw_slice(axis, case, view)
        draw_contour(axis, case, truth, truth_colour)
        draw_contour(axis, case, mask, colour)
        value = case.dsc.get(key, float("nan"))
        score = "DSC not measured" if np.isnan(value) else f"DSC {100 * value:.1f}"
        draw_caption(axis, score if mask.any() else f"{score} · none on this slice")

    draw_slice(lesion, case, zoom)
    draw_contour(lesion, case, case.tumor_coarse, "coarse tumor", width=1.7)
    draw_contour(lesion, case, case.reference_tumor, "reference tumor", width=1.7)
    draw_contour(lesion, case, case.tumor_fine, "fine tumor", width=1.7)
    draw_rectangle(reference, zoom)


def whole_field(case: CaseSlice) -> Field:
    """The smallest square that holds the slice."""
    height, width = (count * size for count, size in zip(case.image.shape, case.spacing, strict=True))
    return Field(height / 2, width / 2, max(height, width))


def lesion_masks(case: CaseSlice) -> tuple[Mask, ...]:
    """What the lesion panel is centered on: the reference lesion, else what was predicted, else the pancreas."""
    candidates = (
        (case.reference_tumor,),
        (case.tumor_fine, case.tumor_coarse),
        (case.reference_pancreas, case.pancreas),
    )
    return next((masks for masks in candidates if any(mask.any() for mask in masks)), ())


def field_around(case: CaseSlice, masks: Sequence[Mask], margin_mm: float, otherwise: Field) -> Field:
    """The square around all ``masks`` plus a margin, moved so that it does not leave the slice; ``otherwise`` if they are empty."""
    union = np.logical_or.reduce(masks) if masks else np.zeros(case.image.shape, dtype=bool)
    if not union.any():
        return otherwise
    indices = [np.flatnonzero(union.any(axis=1 - axis)) for axis in (0, 1)]
    extents = [(hits[0] * size, (hits[-1] + 1) * size) for hits, size in zip(indices, case.spacing, strict=True)]
    limits = [count * size for count, size in zip(case.image.shape, case.spacing, strict=True)]
    side = min(max(high - low for low, high in extents) + 2 * margin_mm, *limits)
    y, x = (
        float(np.clip((low + high) / 2, side / 2, limit - side / 2))
        for (low, high), limit in zip(extents, limits, strict=True)
    )
    return Field(y, x, float(side))


def draw_slice(axis: "Axes", case: CaseSlice, view: Field, *, bar: bool = True) -> None:
    """The image in mm, cut to ``view``, with a scale bar unless there is no room for one."""
    height, width = (count * size for count, size in zip(case.image.shape, case.spacing, strict=True))
    low, high = case.window or (float(case.image.min()), float(case.image.max()))
    axis.set_facecolor("black")
    axis.imshow(
        case.image,
        cmap="gray",
        vmin=low,
        vmax=high,
        extent=(0, width, height, 0),
        interpolation="bilinear",
        aspect="equal",
    )
    half = view.side / 2
    axis.set_xlim(view.x - half, view.x + half)
    axis.set_ylim(view.y + half, view.y - half)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)
    if bar:
        _scale_bar(axis, view)


def _scale_bar(axis: "Axes", view: Field) -> None:
    length = next((bar for bar in SCALE_BARS_MM if bar <= 0.3 * view.side), SCALE_BARS_MM[-1])
    right, bottom = 0.95, 0.06
    axis.plot(
        [right - length / view.side, right],
        [bottom, bottom],
        transform=axis.transAxes,
        color="white",
        linewidth=1.8,
        solid_capstyle="butt",
        path_effects=_halo(3.0),
    )
    axis.text(
        right - length / view.side / 2,
        bottom + 0.025,
        f"{length:g} mm",
        transform=axis.transAxes,
        color="white",
        fontsize=6,
        ha="center",
        va="bottom",
        path_effects=_halo(1.5),
    )


def draw_contour(axis: "Axes", case: CaseSlice, mask: Mask, name: str, width: float = 1.2) -> None:
    """The outline of ``mask`` between pixel centers, closed at the image border; nothing for an empty mask."""
    if not mask.any():
        return
    y, x = ((np.arange(-1, count + 1) + 0.5) * size for count, size in zip(mask.shape, case.spacing, strict=True))
    lines = axis.contour(
        x,
        y,
        np.pad(mask.astype(float), 1),
        levels=[0.5],
        colors=[COLOURS[name]],
        linewidths=[width],
        linestyles=[line_style(name)],
    )
    lines.set_path_effects(_halo(width + 0.7))


def line_style(name: str) -> Any:
    """Solid for the reference tumor, dash-dotted for the reference pancreas, dashed for predictions, dotted for the coarse tumor: also in a
    grayscale print."""
    if name.startswith("reference"):
        return (0, (6.0, 1.2, 1.2, 1.2)) if name.endswith("pancreas") else "solid"
    return (0, (1.5, 0.7)) if name.startswith("coarse") else (0, (3.5, 1.2))


def draw_rectangle(axis: "Axes", view: Field) -> None:
    from matplotlib.patches import Rectangle

    corner = (view.x - view.side / 2, view.y - view.side / 2)
    axis.add_patch(
        Rectangle(corner, view.side, view.side, fill=False, edgecolor="white", linewidth=0.7, linestyle=(0, (4, 2)))
    )


def draw_caption(axis: "Axes", text: str) -> None:
    axis.text(
        0.04,
        0.96,
        text,
        transform=axis.transAxes,
        color="white",
        fontsize=6.5,
        ha="left",
        va="top",
        path_effects=_halo(1.8),
    )


def _halo(width: float) -> list[Any]:
    """A dark edge that keeps lines and letters readable on bright tissue."""
    from matplotlib.patheffects import Normal, Stroke

    return [Stroke(linewidth=width, foreground="black"), Normal()]


def _legend() -> list[Any]:
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=colour, linestyle=line_style(name), linewidth=1.8, label=name)
        for name, colour in COLOURS.items()
    ]
