"""Which runs are meant by folders on the command line."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from dgbench.errors import DgbenchError
from dgbench.store.folder import SHARED_METHOD, RunFolder, iter_runs, read_run, read_status

DEPTH = 4
"""A run lies this many folders below the runs folder: protocol, held-out center, method, seed and key."""


def finished_runs(folders: Sequence[Path], preset: str | None, skipped: Callable[[str], None]) -> list[RunFolder]:
    """The finished runs of methods at or below ``folders``, each once, of ``preset`` or (None) of every ranked preset, unmodified.

    A run that is named itself must fit; of those below a folder, the ones that do not are told to ``skipped``.

    Raises:
        DgbenchError: a folder does not exist, or a run that is named cannot be read or does not fit.
    """
    found: dict[Path, RunFolder] = {}
    for folder in folders:
        place = Path(os.path.abspath(folder))  # without "..", by which runs are told apart
        if not place.is_dir():
            raise DgbenchError(f"{folder}: no such folder — name run folders, or folders with runs below them")
        named = (place / "spec.json").is_file()
        if named and len(place.parents) < DEPTH:
            raise DgbenchError(
                f"{folder}: a run lies {DEPTH} folders below its runs folder — name it there, not a copy of its folder"
            )
        for run in [read_run(place.parents[DEPTH - 1], place)] if named else _below(place):
            reason = _unfit(run, preset)
            if reason is None:
                found[run.path] = run
            elif named:
                raise DgbenchError(f"{folder}: {reason}")
            elif run.spec.method.name != SHARED_METHOD and preset in (None, run.spec.protocol.preset):
                skipped(f"skipped {run.relative}: {reason}")
    return list(found.values())


def siblings(runs: Iterable[RunFolder]) -> list[RunFolder]:
    """Everything in the runs folders of ``runs``, where their shared stages are."""
    return [run for root in dict.fromkeys(run.root for run in runs) for run in iter_runs(root)]


def _below(folder: Path) -> list[RunFolder]:
    """The runs below a folder that lies anywhere from a runs folder down to the folder of a method."""
    specs = sorted(path for depth in range(1, DEPTH + 1) for path in folder.glob("*/" * depth + "spec.json"))
    roots = dict.fromkeys(
        path.parents[DEPTH] for path in specs if path.parent.name.startswith("seed") and len(path.parents) > DEPTH
    )
    return [run for root in roots for run in iter_runs(root) if folder in run.path.parents]


def _unfit(run: RunFolder, preset: str | None) -> str | None:
    """Why a run does not become a record; None if it does."""
    protocol = run.spec.protocol
    if run.spec.method.name == SHARED_METHOD:
        return "shared stages come along with the runs that use them"
    if preset is not None and protocol.preset != preset:
        return f"preset {protocol.preset}, not {preset}"
    if protocol.modified:
        return f"its preset {protocol.preset} was modified"
    if preset is None and not protocol.ranked:
        return f"preset {protocol.preset} is not ranked — add --preset {protocol.preset} to submit it all the same"
    for folder in (run.path, run.evaluation):
        if (state := read_status(folder).state) != "done":
            return f"{'evaluation' if folder == run.evaluation else 'run'} is {state}"
    return None
