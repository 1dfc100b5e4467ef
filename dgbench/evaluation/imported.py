"""Masks of any system as a run folder: judged as every prediction is, stamped as imported, never ranked with what was trained here.

Of such a system only one mask per held-out case is known. Its rows therefore have one setting (that of the last stage, ``F-Seg``), the
threshold 0.5 and the checkpoint ``imported``; there are no stages, no training and no cost.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgbench import __version__
from dgbench.atomic import write_bytes, write_json
from dgbench.data.splits import check_heldout
from dgbench.errors import DgbenchError
from dgbench.evaluation.metrics import NUMBERS, case_metrics
from dgbench.frozen import check_name
from dgbench.protocol import Protocol, ResolvedProtocol, load_protocol
from dgbench.registry import discover
from dgbench.store.cases import leads_out
from dgbench.store.folder import IMPORTED, RunFolder, RunSpec, open_run, read_status, run_folder, write_status
from dgbench.store.keys import key_of
from dgbench.store.lock import FolderLock
from dgbench.training.job import protocol_reference

THRESHOLD = 0.5
NOWHERE = {"device": "none", "precision": "none", "threads": 0, "torch": "none", "devices": 0}
"""The environment of a run that nothing was trained for."""

PredictedCase = tuple[str, NDArray[Any], NDArray[Any], Sequence[float]]
"""Case id, predicted mask, reference mask, voxel size in mm in the order of the axes."""


def import_predictions(
    cases: Iterable[PredictedCase],
    *,
    name: str,
    heldout: str,
    protocol: str | Protocol,
    preset: str,
    runs: Path,
    seed: int = 0,
    title: str | None = None,
    evaluated: Mapping[str, str] | None = None,
    data: Mapping[str, str] | None = None,
    command: str | None = None,
) -> RunFolder:
    """Judge the masks of a system on the cases of ``heldout`` and write them as a finished run; the same masks again find it.

    Args:
        cases: one ``(case_id, prediction, reference, spacing)`` per held-out case, taken one after another: the id ``<heldout>/<case>``,
            two binary masks of one shape (any dtype, values 0 and 1) and the voxel size in mm per axis.
        name: what the row is called; not the name of a method.
        heldout: the center that the cases are of.
        protocol: name, YAML file or object; its metric constants are used.
        preset: the preset whose table the row stands in.
        runs: folder of the runs.
        seed: tells several trainings of one system apart.
        title: the system in words; ``name`` by default.
        evaluated: ``fingerprint`` and ``content`` of the evaluated cases as a run's evaluation states them; by default a hash over the
            references, which are then only comparable with sets that were imported from the same references.
        data: identity of the data by center, as a run states it; by default that of the references.
        command: the command line that repeats this.

    Raises:
        DgbenchError: a name cannot be used, a case is of another center or comes twice, there is none, or its masks cannot be judged.
            Nothing is written then.
    """
    contract = load_protocol(protocol) if isinstance(protocol, str) else protocol
    resolved = contract.resolve(preset)
    check_system(name)
    check_heldout(contract, heldout)
    rows, predictions, references = _judge(cases, heldout, resolved)
    evaluated = dict(evaluated or dict.fromkeys(("fingerprint", "content"), references))
    record: dict[str, Any] = {"numbers": NUMBERS, "train_keys": {}, **evaluated, "predictions": predictions}
    record["how"] = {"metrics": contract.metrics.model_dump(mode="json")}
    reference = protocol_reference(resolved)
    spec = RunSpec.model_validate(
        {
            "schema": 1,
            "dgbench": __version__,
            "key": imported_key(name, heldout, seed, reference.content, record),
            "protocol": reference.model_dump(),
            "heldout": heldout,
            "sources": [],
            "seed": seed,
            "method": {"name": name, "version": 1, "title": title or name, "config": {}, "imported": True},
            "stages": {},
            "data": {"centers": dict(data or {f"references of {heldout}": references})},
            "environment": NOWHERE,
            "command": command or _folder_command(name, heldout, resolved, seed),
        }
    )
    with FolderLock(run_folder(runs, contract.name, heldout, name, seed, spec.key)):
        return _write(runs, spec, {**record, "key": key_of(record)}, rows)


def _folder_command(name: str, heldout: str, resolved: ResolvedProtocol, seed: int) -> str:
    """How masks in files would be imported for the same table."""
    where = f"--protocol {resolved.protocol.name} --preset {resolved.preset_name}"
    data = " --data DIR" if resolved.protocol.kind == "patient" else ""
    return f"dgbench import-predictions FOLDER --name {name} --heldout {heldout} {where}{data} --seed {seed}"


def imported_key(name: str, heldout: str, seed: int, content: str, evaluation: Mapping[str, Any]) -> str:
    """The key of a prediction set: who it is of, the content of the protocol, and what its evaluation states, the masks among it."""
    return key_of({"imported": name, "seed": seed, "heldout": heldout, "protocol": content, **evaluation})


def check_system(name: str) -> None:
    """Raise DgbenchError if ``name`` cannot be that of an imported system: no folder name, or the name of a method."""
    check_name(name, "--name")
    if name.casefold() in {method.casefold() for method in discover()}:  # one folder where disks tell no case
        raise DgbenchError(f"--name {name}: is a method of this benchmark — give the imported system a name of its own")


def _write(runs: Path, spec: RunSpec, evaluation: Mapping[str, Any], rows: list[dict[str, Any]]) -> RunFolder:
    import pandas as pd

    run = open_run(runs, spec)
    if read_status(run.path).state != "done":
        write_json(run.evaluation / "spec.json", evaluation)
        write_bytes(run.evaluation / "cases.parquet", pd.DataFrame(rows).to_parquet(index=False))
        write_status(run.evaluation, "done")
        write_status(run.path, "done")
    return run


def _judge(
    cases: Iterable[PredictedCase], heldout: str, resolved: ResolvedProtocol
) -> tuple[list[dict[str, Any]], str, str]:
    """The rows in the order of case ids, and a hash over the predictions and one over the references."""
    protocol = resolved.protocol
    stage, judged = list(protocol.stages)[-1], protocol.center_of(heldout)
    rows: dict[str, dict[str, Any]] = {}
    hashes: list[tuple[str, str, str]] = []
    axes = protocol.task.ndim
    for case, given, expected, spacing in cases:
        prediction, reference = np.asarray(given), np.asarray(expected)
        center, _, own = str(case).partition("/")
        if center != judged or not own or leads_out(own):
            raise DgbenchError(f"case {case}: is not of the held-out center — its id must be {judged}/<case>")
        if reference.ndim != axes:
            raise DgbenchError(f"case {case}: masks of {reference.ndim} axes — protocol {protocol.name} has {axes}")
        if case in rows:
            raise DgbenchError(f"case {case}: comes twice — give one mask per case")
        try:
            metrics = case_metrics(
                reference,
                prediction,
                spacing,
                nsd_tolerance_mm=protocol.metrics.nsd_tolerance_mm,
                detection_overlap=protocol.metrics.detection_overlap,
            )
        except DgbenchError as error:
            raise DgbenchError(f"case {case}: {error}") from None
        rows[case] = {
            "case": case,
            "center": judged,
            "role": "held-out",
            "stage": stage,
            "setting": f"{protocol.stages[stage].code}-Seg",
            "checkpoint": IMPORTED,
            "threshold": THRESHOLD,
            "failed": False,
            "reason": None,
            "roi": IMPORTED,
            "rounds": 0,
            "windowed": False,
            **asdict(metrics),
        }
        hashes.append((case, _digest(prediction, spacing), _digest(reference, spacing)))
    if not rows:
        raise DgbenchError(f"no case of {heldout}: nothing to import")
    predictions, references = (
        hashlib.sha256("\n".join(f"{line[0]} {line[part]}" for line in sorted(hashes)).encode()).hexdigest()
        for part in (1, 2)
    )
    return [rows[case] for case in sorted(rows)], predictions, references


def _digest(mask: NDArray[Any], spacing: Sequence[float]) -> str:
    """SHA-256 of a binary mask with its shape and spacing."""
    place = f"{mask.shape} {tuple(map(float, spacing))}"
    return hashlib.sha256(place.encode() + np.packbits(np.asarray(mask) != 0).tobytes()).hexdigest()
