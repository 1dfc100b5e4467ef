"""t-SNE of the features pooled over tumor and normal tissue (the paper's Fig. 6), per method and held-out center.

Every panel is one network: features of two networks have nothing in common, so that only what is inside a panel can be compared.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dgbench.errors import DgbenchError
from dgbench.leaderboard.figures.board import Board, Cell, Drawing, NothingToDraw, Options, undrawn
from dgbench.leaderboard.figures.style import SMALL_PT, TONES, Sheet, numbered, pages, say
from dgbench.store.foreign import read_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = ("case", "center", "role", "stage", "checkpoint", "tissue", "features")
MOST_METHODS = 5
"""Methods on one page."""
LEAST = 6
"""Fewer points make no map."""
PERPLEXITY = 30.0
SEED = 0
EXACT = 800
"""Up to so many points the gradient is computed exactly; above by Barnes and Hut."""
TISSUES = {"tumor": ("o", True), "normal": ("^", False)}
"""Marker, and whether it is filled."""

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Embedding:
    """One network's pooled features. ``features`` (n, channels) are standardised per channel, ``place`` (n, 2) is their map (without
    unit), ``center``, ``tissue`` and whether the case is ``heldout`` (n,) tell the points apart; ``skipped`` counts pooled features with a
    value that is no number."""

    cell: Cell
    features: FloatArray
    place: FloatArray
    center: NDArray[np.str_]
    tissue: NDArray[np.str_]
    heldout: NDArray[np.bool_]
    perplexity: float
    skipped: int


def silhouette(points: FloatArray, names: NDArray[np.str_]) -> float | None:
    """Mean silhouette in [−1, 1] of ``points`` (n, d) grouped by ``names``; None where it is not defined (one group, or all single)."""
    from sklearn.metrics import silhouette_score

    return float(silhouette_score(points, names)) if 1 < len(set(names)) < len(names) else None


def perplexity_for(n: int) -> float:
    """The perplexity for ``n`` points: 30, or a third of the others where these are few."""
    return min(PERPLEXITY, (n - 1) / 3)


def project(features: FloatArray) -> FloatArray:
    """(n, channels) standardised features as a map (n, 2), n ≥ 6: t-SNE from the principal components, with a fixed seed."""
    from sklearn.manifold import TSNE

    n = len(features)
    model = TSNE(
        n_components=2,
        perplexity=perplexity_for(n),
        init="pca" if min(features.shape) >= 2 else "random",
        learning_rate="auto",
        random_state=SEED,
        method="exact" if n <= EXACT else "barnes_hut",
        n_jobs=1,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # channels that are constant
        return np.asarray(model.fit_transform(features), dtype=np.float64)


def standardised(features: FloatArray) -> FloatArray:
    """Every channel with mean 0 and standard deviation 1; a constant channel, and one whose spread no number can hold, is 0."""
    with np.errstate(over="ignore", invalid="ignore"):
        spread, apart = features.std(axis=0), features - features.mean(axis=0)
    told = (spread > 0) & np.isfinite(spread) & np.isfinite(apart).all(axis=0)
    return np.asarray(np.where(told, apart, 0.0) / np.where(told, spread, 1.0), dtype=np.float64)


def embed(cell: Cell) -> Embedding | str:
    """The map of a run's features of the judged stage, held-out and source-validation cases; or why there is none.

    Raises:
        DgbenchError: ``features.parquet`` is damaged.
    """
    path = cell.run.evaluation / "features.parquet"
    if not path.is_file():
        return "lack features.parquet"
    try:
        rows = read_table(path)
        chosen = (rows["stage"] == cell.stage) & (rows["checkpoint"] == cell.view.checkpoint)
        rows = rows.loc[chosen & rows["role"].isin(("held-out", "source-val")) & rows["tissue"].isin(list(TISSUES))]
        values = np.stack(rows["features"].to_list()).astype(np.float64) if len(rows) else np.zeros((0, 1))
    except (OSError, ValueError, KeyError) as error:
        problem = " ".join(str(error).split())
        raise DgbenchError(f"{path}: not readable features ({problem}) — remove it and evaluate again") from error
    finite = np.isfinite(values).all(axis=1)
    if finite.sum() < LEAST:
        return f"hold fewer than {LEAST} pooled features of {cell.stage}"
    features = standardised(values[finite])
    if not features.any():
        return f"hold pooled features of {cell.stage} that do not differ"
    return Embedding(
        cell=cell,
        features=features,
        place=project(features),
        center=rows["center"].to_numpy(dtype=str)[finite],
        tissue=rows["tissue"].to_numpy(dtype=str)[finite],
        heldout=(rows["role"] == "held-out").to_numpy(dtype=bool)[finite],
        perplexity=perplexity_for(len(features)),
        skipped=int((~finite).sum()),
    )


def gather(board: Board) -> tuple[dict[tuple[str, str], Embedding], list[str]]:
    """By row and held-out center, the map of the first seed (in-domain of its first fold) that has one; and a line per reason why others
    have none."""
    found: dict[tuple[str, str], Embedding] = {}
    lacking: dict[str, list[Cell]] = {}
    for label in board.labels:
        for center in board.table.centers:
            for cell in board.of(label, center):
                answer = embed(cell)
                if isinstance(answer, Embedding):
                    found[label, center] = answer
                    break
                lacking.setdefault(answer, []).append(cell)
    total = len(board.cells)
    return found, [line for reason, cells in lacking.items() for line in undrawn(cells, total, reason)]


def draw(board: Board, options: Options) -> Drawing:
    """A column per method, a row per held-out center."""
    found, notes = gather(board)
    if not found:
        raise NothingToDraw(f"{'; '.join(notes)} — name a folder of whole runs, records keep no features")
    labels = [label for label in board.labels if any(label == drawn for drawn, _ in found)]
    centers = [center for center in board.table.centers if any(center == drawn for _, drawn in found)]
    names = sorted({name for entry in found.values() for name in entry.center}, key=_order(board))
    colours = {name: TONES[index % len(TONES)] for index, name in enumerate(names)}
    parts = pages(labels, MOST_METHODS)
    titles = [numbered("t-SNE of pooled features", page, len(parts)) for page in range(1, len(parts) + 1)]
    sheets = [
        _page(board, found, part, centers, colours, title, notes) for part, title in zip(parts, titles, strict=True)
    ]
    return Drawing(sheets, notes)


def _order(board: Board) -> Callable[[str], tuple[int, str]]:
    """Centers in the order of the table, others after them by name."""
    place = {name: index for index, name in enumerate(board.table.centers)}
    return lambda name: (place.get(name, len(place)), name)


def _page(
    board: Board,
    found: Mapping[tuple[str, str], Embedding],
    labels: Sequence[str],
    centers: Sequence[str],
    colours: Mapping[str, str],
    title: str,
    notes: Sequence[str],
) -> Sheet:
    left, least = 0.34, 5.6
    panel = min(2.2, max(1.62, (least - left - 0.1) / len(labels) - 0.08))
    seeds = {entry.cell.seed for entry in found.values()}
    told = bool(board.compiled.folds) or len(seeds) > 1
    note = 0.46 if told else 0.34
    stage = next(iter(found.values())).cell.stage
    skipped = sum(entry.skipped for entry in found.values())
    footer = [
        f"a point: features of one case pooled over one tissue (decoder of {stage}, label ROI), standardised; large: held-out cases, "
        f"small: source validation; {'' if told else f'seed {min(seeds)}; '}t-SNE with a fixed random state, axes without unit; every "
        "panel is a network of its own, the first that keeps features: distances compare inside a panel only",
        "s: silhouette in −1..1 between tissues (higher: tumor apart from normal) and between centers (lower: centers mixed), on the map "
        "and, in parentheses, on the features themselves",
        *([f"{skipped} pooled features with a value that is no number are left out"] if skipped else []),
        *notes,
    ]
    width = max(least, left + len(labels) * (panel + 0.08) + 0.1)
    body = len(centers) * (panel + note) + 0.5
    sheet = board.sheet(width, body, title, footer, missing="their networks have no panel")
    used = left + len(labels) * (panel + 0.08)
    grid = sheet.grid(
        len(centers), len(labels), left=left, right=width - used, above=0.22, below=0.3 + note - 0.02, gaps=(0.08, note)
    )
    for center, axes in zip(centers, grid, strict=True):
        for label, axis in zip(labels, axes, strict=True):
            entry = found.get((label, center))
            if entry is None:
                say(axis, "no features" if board.of(label, center) else board.reason(label, center))
            else:
                _scatter(axis, entry, colours, told)
            _frame(axis)
        axes[0].set_ylabel(f"held-out {center}", labelpad=3)
    for label, axis in zip(labels, grid[0], strict=True):
        axis.set_title(label, pad=3)
    sheet.legend(_handles(colours), columns=len(colours) + 3, handletextpad=0.1)
    return sheet


def _frame(axis: "Axes") -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(True)
        spine.set_color("#999999")


def _scatter(axis: "Axes", entry: Embedding, colours: Mapping[str, str], told: bool) -> None:
    """Source cases first, so that the held-out ones lie on top; whose network it is, where that must be ``told``."""
    for heldout, center, (tissue, (marker, filled)) in product((False, True), colours, TISSUES.items()):
        x, y = entry.place[(entry.heldout == heldout) & (entry.center == center) & (entry.tissue == tissue)].T
        axis.scatter(
            x,
            y,
            s=15 if heldout else 8,
            marker=marker,
            facecolor=colours[center] if filled else "white",
            edgecolor="white" if filled else colours[center],
            linewidth=0.3 if filled else 0.8,
        )
    axis.margins(0.07)
    text = (
        f"s tissues {_score(entry, entry.tissue)}, n {len(entry.place)}\n"
        f"s centers {_score(entry, entry.center)}, perplexity {entry.perplexity:.3g}"
    )
    if told:
        text = f"{entry.cell.run.spec.heldout}, seed {entry.cell.seed}\n{text}"
    axis.text(0.5, -0.02, text, transform=axis.transAxes, fontsize=SMALL_PT - 0.5, ha="center", va="top")


def _score(entry: Embedding, names: NDArray[np.str_]) -> str:
    """The silhouette on the map, and on the features in parentheses."""
    seen, true = silhouette(entry.place, names), silhouette(entry.features, names)
    return "undefined" if seen is None or true is None else f"{seen:.2f} ({true:.2f})"


def _handles(colours: Mapping[str, str]) -> list[Any]:
    from matplotlib.lines import Line2D

    def handle(label: str, marker: str, face: str, edge: str) -> Any:
        return Line2D(
            [],
            [],
            linestyle="none",
            marker=marker,
            markersize=4.5,
            markerfacecolor=face,
            markeredgecolor=edge,
            label=label,
        )

    tissues = [
        handle(f"{tissue} tissue", marker, "#777777" if filled else "white", "#777777")
        for tissue, (marker, filled) in TISSUES.items()
    ]
    return [*(handle(name, "s", colour, colour) for name, colour in colours.items()), *tissues]
