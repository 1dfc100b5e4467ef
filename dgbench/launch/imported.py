"""A folder of masks as a run: one file per case of the held-out center, checked as labels are, on the grid of the reference."""

import shlex
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from dgbench.data.case import SUFFIX, Case
from dgbench.data.preparation import native_label
from dgbench.data.reading import grid_difference, read_label_map
from dgbench.errors import DgbenchError
from dgbench.evaluation.imported import PredictedCase, check_system, import_predictions
from dgbench.launch.jobs import evaluation_identity
from dgbench.launch.phantom import ensure_data
from dgbench.launch.plan import RunPlan, RunRequest, plan_run, resolve_request
from dgbench.store.folder import RunFolder

SHOWN = 6
"""Names of files that a message lists before it counts the rest."""


def import_folder(
    folder: Path, request: RunRequest, *, name: str, title: str | None = None, target: Sequence[int] = ()
) -> RunFolder:
    """Judge the masks in ``folder`` on the held-out center of ``request`` and write them as a run of the system ``name``.

    The run stands where one of ``request.method`` (any method that trains) would stand: same protocol, data and evaluated cases. Files
    are named as the labels; ``target`` are the values in them that mean the structure that is judged, by default those of the protocol.

    Raises:
        DgbenchError: a case without a file or a file without a case (all are named), a file that is damaged, on another grid than its
            reference or with values that are not allowed, or no file with a target value while other values are there.
    """
    resolve_request(request)
    check_system(name)
    if not folder.is_dir():
        raise DgbenchError(f"{folder}: no such folder — name the folder with one {SUFFIX} per held-out case")
    ensure_data(request)
    plan = plan_run(request)
    files = _files(folder, [case for case in plan.evaluated(plan.own) if case.id in plan.split.test])
    identity = evaluation_identity(plan, plan.own)
    return import_predictions(
        _read(files, plan, tuple(target)),
        name=name,
        heldout=request.heldout,
        protocol=plan.resolved.protocol,
        preset=request.preset,
        runs=request.runs,
        seed=request.seed,
        title=title,
        evaluated={key: str(identity[key]) for key in ("fingerprint", "content")},
        data={**plan.own.spec.data.centers, **plan.heldout_identity()},
        command=_command(request, name, target),
    )


def _command(request: RunRequest, name: str, target: Sequence[int]) -> str:
    """The command line without folders of this machine."""
    words = ["dgbench", "import-predictions", "FOLDER", "--name", name, "--heldout", request.heldout]
    words += ["--protocol", request.protocol, "--preset", request.preset, "--seed", str(request.seed)]
    return shlex.join([*words, *(("--target", ",".join(map(str, target))) if target else ())])


def _files(folder: Path, cases: Collection[Case]) -> dict[Case, Path]:
    """The file of each case. Raises DgbenchError that lists what is missing, or what belongs to no case."""
    found = {path.name: path for path in folder.iterdir() if not path.name.startswith(".")}
    wanted = {f"{case.name}{SUFFIX}": case for case in cases}
    center = next(iter(cases)).center
    if missing := sorted(wanted.keys() - found.keys()):
        raise DgbenchError(
            f"{folder}: no mask for {len(missing)} of {len(wanted)} cases of {center}: {_some(missing)} — "
            "every held-out case needs one, an empty mask where nothing was found"
        )
    if extra := sorted(found.keys() - wanted.keys()):
        raise DgbenchError(
            f"{folder}: {len(extra)} files belong to no case of {center}: {_some(extra)} — masks are named as the labels; move others away"
        )
    return {case: found[name] for name, case in wanted.items()}


def _read(files: dict[Case, Path], plan: RunPlan, target: tuple[int, ...]) -> Iterator[PredictedCase]:
    """Each case with its masks on the reference's grid; after the last one, an error if no file held a target value but others."""
    protocol = plan.resolved.protocol
    judged = list(protocol.stages.values())[-1].target
    wanted = target or judged
    seen: set[int] = set()
    for case, path in files.items():
        what = f"case {case.id}: prediction"
        reference, grid = native_label(case, protocol)
        prediction, own = read_label_map(path, protocol.task, {*protocol.labels.values(), *wanted}, what=what)
        if difference := grid_difference(own, grid):
            told = difference.replace("differs from image", "differs from reference")
            raise DgbenchError(f"{what} {path}: grid {told} — resample the mask onto its scan")
        seen |= set(np.unique(prediction).tolist())
        yield case.id, np.isin(prediction, wanted), np.isin(reference, judged), grid.spacing
    if seen - {0} and not seen & set(wanted):
        raise DgbenchError(
            f"no mask holds {_values(wanted)}, they hold {_values(sorted(seen - {0}))} — say which values are meant with --target, such as "
            "--target 1 for binary masks"
        )


def _values(values: Collection[int]) -> str:
    return f"value{'s' if len(values) > 1 else ''} {', '.join(map(str, values))}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f", … ({len(names)} in all)" if len(names) > SHOWN else "")
