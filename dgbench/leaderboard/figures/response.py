"""Shift-response curves: held-out DSC over the strength of an axis per method, with the strength of training and the annotation ceiling."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dgbench import __version__
from dgbench.leaderboard.figures.style import TEXT_PT, Look, Sheet, finish, looks, new_sheet
from dgbench.leaderboard.response import Response, coverage
from dgbench.leaderboard.sheets import BANNERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CEILING: dict[str, Any] = {"color": "#777777", "linestyle": (0, (4, 2)), "linewidth": 1.0}
TRAINING: dict[str, Any] = {"color": "#777777", "linestyle": (0, (1, 1.5)), "linewidth": 1.0}


def draw(response: Response) -> Sheet:
    """A panel per held-out center and one for their mean, where there are several."""
    names: list[str | None] = [*response.centers, *([None] if len(response.centers) > 1 else [])]
    legend = 0.2 * -(-(len(response.methods) + 2) // 4) + 0.1
    several = len(response.seeds) > 1
    footer = [
        "held-out DSC in points (0–100), mean over cases; strength 0: the centers are alike in this respect, 1: their full difference; "
        "every other axis stays as in training; same patients, anatomy and noise seeds at every strength"
        + ("; thin: one seed" if several else ""),
        "annotation ceiling: DSC of the true lesion against the annotated one, what a perfect outline would score",
        *response.notes,
        *coverage(response),
        f"dgbench {__version__}",
    ]
    heading = [f"{BANNERS['phantom']} · shift response, axis {response.axis}", *response.heading]
    sheet = new_sheet(max(5.0, 0.7 + 2.1 * len(names)), 2.4 + legend, heading, footer)
    (axes,) = sheet.grid(1, len(names), left=0.5, above=0.22, below=0.42 + legend, gaps=(0.17, 0.0), sharey=True)
    look = looks(response.methods)
    for name, axis in zip(names, axes, strict=True):
        _panel(axis, response, name, look)
        axis.set_title("mean over centers" if name is None else f"held-out {name}", fontsize=TEXT_PT, pad=3)
        axis.set_xlabel(f"strength of axis {response.axis} (1: full shift)")
    axes[0].set_ylabel("DSC (points)")
    axes[0].set_ylim(bottom=0)
    sheet.legend(_handles(response, look), columns=4, handlelength=3.2)
    return sheet


def _panel(axis: "Axes", response: Response, center: str | None, look: dict[str, Look]) -> None:
    finish(axis)
    axis.axvline(response.neutral, **TRAINING)
    axis.plot(response.strengths, 100 * response.ceiling_curve(center), **CEILING)
    for method in response.methods:
        style: dict[str, Any] = {"color": look[method].colour, "linestyle": look[method].dash}
        if len(response.seeds) > 1:
            axis.plot(response.strengths, 100 * response.by_seed(method, center), linewidth=0.5, alpha=0.6, **style)
        curve = 100 * response.curve(method, center)
        mark: dict[str, Any] = {"marker": look[method].marker, "markeredgecolor": "white", "markeredgewidth": 0.4}
        axis.plot(response.strengths, curve, linewidth=1.6, markersize=4.5, **mark, **style)


def _handles(response: Response, look: dict[str, Look]) -> Sequence[Any]:
    from matplotlib.lines import Line2D

    own = [
        Line2D([], [], color=mark.colour, linestyle=mark.dash, marker=mark.marker, markersize=4, label=method)
        for method, mark in look.items()
    ]
    ceiling = Line2D([], [], label="annotation ceiling", **CEILING)
    return [*own, ceiling, Line2D([], [], label=f"strength of training, {response.neutral:g}", **TRAINING)]
