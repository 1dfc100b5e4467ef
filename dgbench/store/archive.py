"""Records of runs: finished run folders without weights, predictions and pictures, small enough to be committed and shared."""

import shlex
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from dgbench.atomic import make_folder, unwritable, write_json
from dgbench.errors import DgbenchError
from dgbench.store.folder import RunFolder, read_status

KEPT = ("spec.json", "status.json", "env.json", "cost.json")
KEPT_OF_EVALUATION = ("spec.json", "status.json", "cases.parquet", "times.parquet")
KEPT_OF_STAGE = ("spec.json", "status.json", "result.json", "validation.jsonl", "times.jsonl")


def archive(run: RunFolder, root: Path) -> Path:
    """Write the record of a finished, evaluated run below ``root``, replacing an older one as a whole; its folder.

    A record can be compiled and read like its run, but not trained on or evaluated. Its command names no folder of this machine.
    Raises DgbenchError for a run that is not done, or a ``root`` that cannot be written.
    """
    for folder in (run.path, run.evaluation):
        status = read_status(folder)
        if status.state != "done":
            raise DgbenchError(f"{folder} is {status.state} — only finished runs become records")
    target = root / run.relative
    make_folder(target.parent)
    try:
        with tempfile.TemporaryDirectory(prefix=".record-", dir=target.parent) as temporary:
            new = Path(temporary) / target.name
            for name in _files(run):
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(run.path / name, new / name)
            write_json(new / "spec.json", {**run.spec.dump(), "command": _portable(run.spec.command)})
            if target.exists():
                target.rename(Path(temporary) / "older")
            new.rename(target)
    except OSError as error:
        raise unwritable(target, error) from error
    return target


def with_shared(runs: Iterable[RunFolder], everything: Iterable[RunFolder]) -> list[RunFolder]:
    """``runs`` and the runs of the stages that they share, each once; ``everything`` is all that there is."""
    chosen = list(runs)
    wanted = {stage.folder.rpartition("/")[0] for run in chosen for stage in run.spec.stages.values()}
    known = {run.relative for run in chosen}
    return [*chosen, *(run for run in everything if run.relative in wanted and run.relative not in known)]


def _files(run: RunFolder) -> Iterator[str]:
    wanted = [*KEPT, *(f"evaluation/{name}" for name in KEPT_OF_EVALUATION)]
    wanted += [f"{stage}/{name}" for stage in run.own_stages for name in KEPT_OF_STAGE]
    yield from (name for name in wanted if (run.path / name).is_file())


def _portable(command: str) -> str:
    """The command without ``--runs`` and ``--data``, which name folders of one machine."""
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
        kept.append(word)
    return shlex.join(kept)
