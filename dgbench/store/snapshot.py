"""What the MLflow mirror shows of a run folder: tags, parameters, curves, summary values, files. Knows nothing of MLflow but its limits."""

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from dgbench.atomic import TEMPORARY_PREFIX, read_jsonl
from dgbench.errors import DgbenchError
from dgbench.store.folder import RunFolder, RunSpec, Status

if TYPE_CHECKING:
    import pandas as pd

MIRROR_VERSION = 1
"""Part of the digest: raised when the same folder is to be mirrored differently."""
CURVE_POINTS = 1000
"""A longer curve is thinned to every n-th row and its last."""
SUMMARY_METRICS = ("dsc", "nsd", "assd", "hd95", "centroid_mm")
OFFICIAL_THRESHOLD, OFFICIAL_CHECKPOINT = 0.5, "source-val"


class Point(NamedTuple):
    """One value of a curve; summaries have one point at step 0."""

    name: str
    step: int
    value: float


@dataclass(frozen=True)
class Snapshot:
    """What is mirrored of one run folder. ``files`` are pairs of a file and its artifact folder, ``texts`` maps artifact paths to
    their content."""

    spec: RunSpec
    status: Status
    tags: dict[str, str]
    params: dict[str, str]
    points: list[Point]
    files: list[tuple[Path, str]]
    texts: dict[str, str]

    @property
    def experiment(self) -> str:
        """One experiment per protocol, version and preset: ``phantom-v1-demo``."""
        protocol = self.spec.protocol
        return f"{protocol.name}-v{protocol.version}-{protocol.preset}"


def folder_digest(run: RunFolder) -> str:
    """sha256 over names and contents of the files that are mirrored."""
    lines = [f"mirror {MIRROR_VERSION}"]
    for path in _sources(run):
        with path.open("rb") as file:
            lines.append(f"{path.relative_to(run.path).as_posix()} {hashlib.file_digest(file, 'sha256').hexdigest()}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def take_snapshot(run: RunFolder) -> Snapshot:
    """Everything of a run folder that MLflow shows.

    Raises:
        DgbenchError: a file of the folder is damaged.
    """
    spec, status = run.spec, run.status
    points: list[Point] = []
    for stage in run.own_stages:
        points += curve_points(run.stage_folder(stage), stage)
    files = [(run.path / "spec.json", "")]
    files += [(path, "figures") for path in _pictures(run)]
    texts: dict[str, str] = {}
    if (table := run.evaluation / "cases.parquet").exists():
        frame = run.cases()
        points += summary_points(frame, str(table))
        files.append((table, "tables"))
        texts["tables/cases.csv"] = frame.to_csv(index=False)
    tags = {
        "protocol": f"{spec.protocol.name}-v{spec.protocol.version}",
        "kind": spec.protocol.kind,
        "preset": spec.protocol.preset,
        "modified": str(spec.protocol.modified).lower(),
        "heldout": spec.heldout,
        "method": spec.method.name,
        "seed": str(spec.seed),
        "state": status.state,
        "key": spec.key,
        "folder": run.relative,
        "command": spec.command,
    }
    if status.reason is not None:
        tags["reason"] = status.reason
    params = {_name(key): _text(value) for key, value in flatten(spec.dump()).items()}
    return Snapshot(
        spec, status, {f"dgbench.{key}": value for key, value in tags.items()}, params, points, files, texts
    )


def curve_points(stage_folder: Path, stage: str) -> list[Point]:
    """Training curves ``<stage>/<column of steps.jsonl>``, and the validation DSC in [0, 1] as mean per center
    (``<stage>/validation/<center>/dsc``) and as mean of the centers (``<stage>/validation/dsc``); undefined values are left out."""
    points: list[Point] = []
    if (log := stage_folder / "steps.jsonl").exists():
        rows = _rows(log, "step")
        stride = math.ceil(len(rows) / CURVE_POINTS)
        for row in rows[::stride] + rows[-1:] if rows else []:
            points += [
                Point(_name(f"{stage}/{key}"), row["step"], float(v))
                for key, v in row.items()
                if key != "step" and _is_value(v)
            ]
    if (log := stage_folder / "validation.jsonl").exists():
        steps: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for row in _rows(log, "step", "center", "dsc"):
            if _is_value(row["dsc"]):
                steps[row["step"]][row["center"]].append(row["dsc"])
        for step, centers in steps.items():
            means = {center: fmean(values) for center, values in centers.items()}
            points += [Point(_name(f"{stage}/validation/{center}/dsc"), step, mean) for center, mean in means.items()]
            points.append(Point(_name(f"{stage}/validation/dsc"), step, fmean(means.values())))
    return list(dict.fromkeys(points))


def summary_points(frame: "pd.DataFrame", where: str) -> list[Point]:
    """Means of the raw rows at threshold 0.5, named ``<role>/<center>/<setting>/<metric>``; the checkpoint stands before the metric if it
    is not the official one. A mean is over the cases where the metric is defined; ``cases`` and ``failed`` are counts. No policy is
    applied: the ranked numbers are those of the leaderboard.

    Raises:
        DgbenchError: a metric column is missing in the table ``where``.
    """
    missing = [name for name in SUMMARY_METRICS if name not in frame]
    if missing:
        raise DgbenchError(f"{where}: columns {', '.join(missing)} are missing — damaged or foreign, evaluate again")
    official = frame[(frame["threshold"] - OFFICIAL_THRESHOLD).abs() < 1e-9]
    points: list[Point] = []
    for (role, center, setting, checkpoint), rows in official.groupby(["role", "center", "setting", "checkpoint"]):
        place = f"{role}/{center}/{setting}" + ("" if checkpoint == OFFICIAL_CHECKPOINT else f"/{checkpoint}")
        values = {name: float(rows[name].mean()) for name in SUMMARY_METRICS}
        values |= {"cases": float(len(rows)), "failed": float(rows["failed"].sum())}
        points += [Point(_name(f"{place}/{name}"), 0, value) for name, value in values.items() if math.isfinite(value)]
    return points


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names; lists and empty mappings stay values."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _rows(log: Path, *columns: str) -> list[dict[str, Any]]:
    rows = read_jsonl(log)
    for number, row in enumerate(rows, start=1):
        if missing := [name for name in columns if name not in row]:
            raise DgbenchError(f"{log}, line {number}: no {', '.join(missing)} — damaged or foreign")
    return rows


def _sources(run: RunFolder) -> Iterable[Path]:
    logs = [run.stage_folder(stage) / name for stage in run.own_stages for name in ("steps.jsonl", "validation.jsonl")]
    files = [run.path / "spec.json", run.path / "status.json", *logs, run.evaluation / "cases.parquet", *_pictures(run)]
    return [path for path in files if path.exists()]


def _pictures(run: RunFolder) -> list[Path]:
    return sorted(path for path in run.path.glob("figures/*.png") if not path.name.startswith(TEMPORARY_PREFIX))


def _name(text: str) -> str:
    """``text`` with the characters MLflow allows, at most 250."""
    return re.sub(r"[^\w\-./ ]", "_", text)[:250]


def _text(value: Any) -> str:
    """A parameter value, at most MLflow's 6000 characters; text as it is, anything else as JSON."""
    return (value if isinstance(value, str) else json.dumps(value))[:6000]


def _is_value(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
