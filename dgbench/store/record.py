"""Records of runs: finished run folders without weights, predictions and pictures, small enough to be committed and shared.

``record.json`` names every file of a record with its sha256, a hash over these, and the record's tier. A second record of the same key,
made in another environment, is kept inside the first, under ``reproductions/``, and can raise its tier.
"""

import shlex
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from dgbench.atomic import TEMPORARY_PREFIX, make_folder, unwritable, write_json
from dgbench.errors import DgbenchError
from dgbench.store.folder import RunFolder, RunSpec, read_status
from dgbench.store.keys import key_of
from dgbench.store.manifest import MANIFEST, REPRODUCTIONS, Manifest, environment_of
from dgbench.store.study import BEST, KEPT_OF_STUDY, TUNING
from dgbench.store.tiers import reproductions, require_second_run, supported_tier

KEPT = ("spec.json", "status.json", "env.json", "cost.json")
KEPT_OF_EVALUATION = ("spec.json", "status.json", "cases.parquet", "times.parquet")
KEPT_OF_STAGE = ("spec.json", "status.json", "result.json", "validation.jsonl", "times.jsonl")
IMPORT_LACKS = ("env.json", "cost.json", "evaluation/times.parquet")
"""Files that the record of an imported prediction set does not have: nothing ran."""


def write_record(run: RunFolder, root: Path) -> Path:
    """Write the record of a finished, evaluated run below ``root`` and return its folder.

    It takes the place of an older record of the same key that was made in the same environment; beside one of another environment it
    becomes a reproduction of that. The tier is what the reproductions then support (:func:`dgbench.store.tiers.supported_tier`). A record
    can be compiled and read like its run, but not trained on or evaluated. Its command names no folder of this machine.

    Raises:
        DgbenchError: the run cannot become a record (:func:`require_whole`, :func:`require_place`) or is a copy of one that is there, or
            ``root`` cannot be written.
    """
    require_whole(run)
    require_place(run, root)
    record = target = root / run.relative
    environment = environment_of(run.path)
    if (record / "spec.json").is_file() and environment_of(record) != environment:
        target = record / REPRODUCTIONS / key_of(environment)[:8]
        require_second_run(run.path, [record, *(one for one in reproductions(record) if one != target)])
    make_folder(target.parent)
    try:
        with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=root) as temporary:
            new = Path(temporary) / target.name
            for name in record_files(run.spec, run.own_stages):
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(run.path / name, new / name)
            write_json(new / "spec.json", {**run.spec.dump(), "command": _portable(run.spec.command, run.relative)})
            if (target / REPRODUCTIONS).is_dir():
                shutil.copytree(target / REPRODUCTIONS, new / REPRODUCTIONS)
            Manifest.of(new, supported_tier(new)).write(new)
            if target.exists():
                target.rename(Path(temporary) / "older")
            new.rename(target)
    except OSError as error:
        raise unwritable(target, error) from error
    if target != record:
        Manifest.of(record, supported_tier(record)).write(record)
    return target


def require_place(run: RunFolder, root: Path) -> None:
    """Raise DgbenchError where a run, this or another one, lies in the place of the record below ``root``: it would be removed, weights and
    all."""
    place = root / run.relative
    if place.exists() and not (place / MANIFEST).is_file():
        raise DgbenchError(f"{place}: is there and is no record — name another folder of records with --to")


def require_whole(run: RunFolder) -> None:
    """Raise DgbenchError where the run is not done, its preset was modified, or a file of its record or of a stage that it shares is not
    there."""
    for folder in (run.path, run.evaluation):
        status = read_status(folder)
        if status.state != "done":
            raise DgbenchError(f"{folder} is {status.state} — only finished runs become records")
    if run.spec.protocol.modified:
        raise DgbenchError(f"{run.path}: its preset was modified — only runs of a preset as it is become records")
    shared = [run.root / stage.folder / "spec.json" for stage in run.spec.stages.values()]
    for path in (*(run.path / name for name in record_files(run.spec, run.own_stages)), *shared):
        if any(part.is_symlink() for part in (path, path.parent)):
            raise DgbenchError(f"{path}: is a link — what lies elsewhere does not become part of a record")
        if not path.is_file():
            raise DgbenchError(f"{path}: no such file — only whole runs become records; run it again")


def record_files(spec: RunSpec, own_stages: Iterable[str]) -> list[str]:
    """What the record of a run consists of, below its folder, apart from its manifest and its reproductions."""
    wanted = [*KEPT, *(f"evaluation/{name}" for name in KEPT_OF_EVALUATION)]
    wanted += [f"{TUNING}/{name}" for name in KEPT_OF_STUDY if spec.tuned is not None]
    wanted += [f"{stage}/{name}" for stage in own_stages for name in KEPT_OF_STAGE]
    return [name for name in wanted if not (spec.method.imported and name in IMPORT_LACKS)]


def with_shared(runs: Iterable[RunFolder], everything: Iterable[RunFolder]) -> list[RunFolder]:
    """``runs`` and the runs of the stages that they share, each once; ``everything`` is all that there is."""
    chosen = list(runs)
    wanted = {stage.folder.rpartition("/")[0] for run in chosen for stage in run.spec.stages.values()}
    known = {run.relative for run in chosen}
    return [*chosen, *(run for run in everything if run.relative in wanted and run.relative not in known)]


def _portable(command: str, record: str) -> str:
    """The command without ``--runs`` and ``--data``, which name folders of one machine; a configuration is the one in the record, whose
    place is given as below the runs folder."""
    try:
        words = iter(shlex.split(command))
    except ValueError as error:  # it could hide the name of a folder
        raise DgbenchError(f"the command in spec.json cannot be taken apart ({error}): {command} — mend it") from None
    kept: list[str] = []
    for word in words:
        option, equals, _ = word.partition("=")
        if option in ("--runs", "--data"):
            if not equals:
                next(words, None)
            continue
        if option == "--config":
            if not equals:
                next(words, None)
            kept += [option, f"{record}/{TUNING}/{BEST}"]
            continue
        kept.append(word)
    return shlex.join(kept)
