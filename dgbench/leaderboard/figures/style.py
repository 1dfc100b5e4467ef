"""What all figures share: colours, markers and hatches, sheets with a heading and a footer, and files whose bytes repeat.

Colours are those of Okabe and Ito without the yellow, which is too light on white; what is told by colour alone (the centers of a map of
features) differs in lightness too, so that a figure also reads in a grayscale print.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from dgbench.atomic import replacing
from dgbench.leaderboard.sheets import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Form = Literal["png", "pdf", "svg"]
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
TONES = ("#0072B2", "#E69F00", "#000000", "#D55E00", "#CC79A7", "#009E73", "#56B4E9")
"""The same colours, the first four apart in lightness: for things that have no mark of their own."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
DASHES: tuple[Any, ...] = ("solid", (0, (5, 1.5)), (0, (1.5, 1)), (0, (6, 1.5, 1.5, 1.5)))
HATCHES = ("", "////", "....", "xxxx", "----", "oo", "\\\\\\\\")
DPI = 200
TEXT_PT = 7.0
SMALL_PT = 6.0
EDGE = 0.12
"""Empty border of a sheet in inches."""
INDENT = "    "
"""Of the further parts of a broken line."""
_LINE = 1.35
"""Distance of lines of text in units of the font size."""
_SETTINGS: Any = {
    "font.family": "DejaVu Sans",
    "font.size": TEXT_PT,
    "axes.titlesize": TEXT_PT + 1,
    "axes.labelsize": TEXT_PT,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "xtick.labelsize": TEXT_PT - 0.5,
    "ytick.labelsize": TEXT_PT - 0.5,
    "hatch.linewidth": 0.5,
    "legend.fontsize": TEXT_PT,
    "legend.frameon": False,
    "text.parse_math": False,
    "pdf.fonttype": 42,
    "svg.hashsalt": "dgbench",
}


class Look(NamedTuple):
    """How one of several things is drawn: three marks of which each tells it apart from its neighbours in a list."""

    colour: str
    marker: str
    dash: Any
    hatch: str


def looks(names: Sequence[str]) -> dict[str, Look]:
    """A look per name, by its position; the 63 pairs of colour and marker all differ."""
    return {
        name: Look(
            PALETTE[index % len(PALETTE)],
            MARKERS[index % len(MARKERS)],
            DASHES[index % len(DASHES)],
            HATCHES[index % len(HATCHES)],
        )
        for index, name in enumerate(names)
    }


@contextmanager
def plain_settings() -> Iterator[None]:
    """Matplotlib as it comes plus the settings of the house, whatever the user's own say; restored at the end."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A figure with text above and below its body; lengths in inches."""

    figure: "Figure"
    width: float
    height: float
    top: float
    bottom: float

    def grid(
        self,
        rows: int,
        columns: int,
        *,
        left: float,
        right: float = EDGE,
        above: float = 0.0,
        below: float = 0.0,
        gaps: tuple[float, float] = (0.0, 0.0),
        **options: Any,
    ) -> list[list["Axes"]]:
        """Axes in the body, with space around in inches; ``gaps`` is that between columns and between rows."""
        panel_width = (self.width - left - right - (columns - 1) * gaps[0]) / columns
        panel_height = (self.height - self.top - self.bottom - above - below - (rows - 1) * gaps[1]) / rows
        axes = self.figure.subplots(
            rows,
            columns,
            squeeze=False,
            gridspec_kw={
                "left": left / self.width,
                "right": 1 - right / self.width,
                "top": 1 - (self.top + above) / self.height,
                "bottom": (self.bottom + below) / self.height,
                "wspace": gaps[0] / panel_width,
                "hspace": gaps[1] / panel_height,
            },
            **options,
        )
        return [list(row) for row in axes]

    def legend(self, handles: Sequence[Any], *, columns: int, **options: Any) -> None:
        """A legend centered at the foot of the body."""
        self.figure.legend(
            handles=list(handles),
            loc="lower center",
            bbox_to_anchor=(0.5, self.bottom / self.height),
            ncols=columns,
            borderaxespad=0.0,
            columnspacing=1.4,
            **options,
        )


def new_sheet(width: float, body: float, heading: Sequence[str], footer: Sequence[str]) -> Sheet:
    """A white sheet of ``width`` inches whose body is ``body`` inches high; the first line of ``heading`` is set in bold."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    bold = wrap(heading[:1], width, TEXT_PT + 1.5, "bold")
    head, foot = wrap(heading[1:], width, TEXT_PT), wrap(footer, width, SMALL_PT)
    top = EDGE + _inches(len(bold), TEXT_PT + 1.5) + _inches(len(head), TEXT_PT) + 0.06
    bottom = EDGE + _inches(len(foot), SMALL_PT) + 0.06
    height = top + body + bottom
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    y = EDGE
    for lines, size, weight in ((bold, TEXT_PT + 1.5, "bold"), (head, TEXT_PT, "normal")):
        _write(figure, lines, y, size, weight)
        y += _inches(len(lines), size)
    _write(figure, foot, height - bottom + 0.06, SMALL_PT, "normal")
    return Sheet(figure=figure, width=width, height=height, top=top, bottom=bottom)


def wrap(lines: Sequence[str], width: float, size: float, weight: str = "normal") -> list[str]:
    """``lines`` broken between words where they are longer than a sheet of ``width`` inches at ``size`` points; parts are indented."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextToPath

    font, measure = FontProperties(family="DejaVu Sans", size=size, weight=weight), TextToPath()
    room = 72 * (width - 2 * EDGE)
    parts: list[str] = []
    for line in lines:
        part = ""
        for word in printable(line).split():  # no font has control characters
            longer = f"{part} {word}" if part else word
            if part.strip() and measure.get_text_width_height_descent(longer, font, ismath=False)[0] > room:
                parts.append(part)
                longer = f"{INDENT}{word}"
            part = longer
        parts.append(part)
    return parts


def _inches(lines: int, size: float) -> float:
    return lines * size * _LINE / 72


def _write(figure: "Figure", lines: Sequence[str], y: float, size: float, weight: str) -> None:
    """Lines from ``y`` inches below the top."""
    width, height = figure.get_size_inches()
    for index, line in enumerate(lines):
        place = 1 - (y + _inches(index, size)) / height
        figure.text(EDGE / width, place, line, fontsize=size, fontweight=weight, va="top", parse_math=False)


def save(figure: "Figure", path: Path, form: Form, title: str) -> None:
    """Write ``figure`` to ``path``, complete or not at all, without a date: equal figures are equal bytes.

    Raises:
        DgbenchError: the file cannot be written.
    """
    undated = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}[form]
    with replacing(path) as temporary:
        figure.savefig(temporary, format=form, dpi=DPI, metadata={"Title": title, **undated})


def finish(axis: "Axes", *, grid: Literal["x", "y", "both"] = "both") -> None:
    """Grid lines along one axis only, small ticks."""
    axis.tick_params(length=2, width=0.5)
    if grid != "both":
        axis.grid(False, axis="y" if grid == "x" else "x")


def say(axis: "Axes", text: str) -> None:
    """An empty panel with a word why."""
    axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", va="center", fontsize=TEXT_PT, color="#555555")
    axis.tick_params(bottom=False, left=False, labelbottom=False, labelleft=False)
    axis.grid(False)


def pages(names: Sequence[str], most: int) -> list[Sequence[str]]:
    """``names`` in parts of at most ``most``, as even as possible, in order."""
    count = max(1, -(-len(names) // most))
    size = -(-len(names) // count)
    return [names[start : start + size] for start in range(0, len(names), size)]


def numbered(title: str, page: int, count: int) -> str:
    """``title``, with the number of its page (from 1) where there are several."""
    return title if count == 1 else f"{title} ({page} of {count})"
