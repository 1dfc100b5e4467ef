"""The command of a record, which is printed for others to repeat: it is one of dgbench, and of this run."""

import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from dgbench.errors import DgbenchError
from dgbench.info import MethodInfo
from dgbench.launch.plan import RunRequest
from dgbench.launch.settings import split_overrides
from dgbench.protocol import Protocol
from dgbench.registry import discover
from dgbench.store.folder import MethodRef
from dgbench.store.study import BEST, TUNING
from dgbench.verification.record import Record
from dgbench.yaml_text import parse_value

OPTIONS = (
    *("--method", "--heldout", "--protocol", "--preset", "--seed", "--devices", "--rank-timeout", "--device"),
    *("--threads", "--set", "--config"),
)
"""What a run is asked for with; ``--data`` and ``--runs`` name folders of one machine."""


def check_command(record: Record, protocol: Protocol) -> None:
    """Raise DgbenchError where the command of a record asks for something else than its run."""
    spec, path = record.spec, record.path / "spec.json"
    verb = "import-predictions" if spec.method.imported else "run"
    try:
        words = shlex.split(spec.command)
    except ValueError:
        words = []
    if words[:2] != ["dgbench", verb] or shlex.join(words) != spec.command:
        raise DgbenchError(f"{path}: command is no plain `dgbench {verb} …` — submit the run again")
    said = dict(pairwise(words)) if spec.method.imported else _options(path, words[2:])
    for option, found, value in _named(record, said):
        by_class = option == "--method" and ":" in found  # a plugin may be named so
        by_file = option == "--protocol" and found.endswith((".yaml", ".yml"))
        if found != value and not by_class and not by_file:
            raise DgbenchError(f"{path}: command has {option} {found}, the run is of {value}")
    if spec.method.imported:
        return
    config = said.get("--config")
    expected = f"{spec.folder(Path()).as_posix()}/{TUNING}/{BEST}"
    wanted = (expected,) if spec.tuned is not None else (None, expected) if record.shared else (None,)
    if config not in wanted:
        raise DgbenchError(
            f"{path}: command has --config {config}, but a tuned run has {expected} and another one none — use --set, and run it again"
        )
    _check_settings(record, protocol, [value for option, value in _pairs(words[2:]) if option == "--set"], config)


def _named(record: Record, said: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    """Options that name the run, what the command says (or means where it does not), and what it must say."""
    spec, usual = record.spec, RunRequest(method="", heldout="")
    imported = spec.method.imported
    if not record.shared:
        option = "--name" if imported else "--method"
        yield option, said.get(option, "nothing"), spec.method.name
    yield "--heldout", said.get("--heldout", "nothing"), spec.heldout
    yield "--seed", said.get("--seed", str(usual.seed)), str(spec.seed)
    reference = spec.protocol
    yield "--protocol", said.get("--protocol", reference.name if imported else usual.protocol), reference.name
    yield "--preset", said.get("--preset", reference.preset if imported else usual.preset), reference.preset
    if not imported:
        yield "--devices", said.get("--devices", str(usual.devices)), str(spec.environment.devices)


def _pairs(words: list[str]) -> list[tuple[str, str]]:
    return list(zip(words[::2], words[1::2], strict=False))


def _options(path: Path, words: list[str]) -> dict[str, str]:
    """What options say, the last one where one comes twice."""
    if foreign := [word for word in words[::2] if word not in OPTIONS]:
        raise DgbenchError(f"{path}: command has {foreign[0]}, which does not belong there — submit the run again")
    if len(words) % 2:
        raise DgbenchError(f"{path}: command has {words[-1]} without a value — submit the run again")
    return dict(_pairs(words))


def _check_settings(record: Record, protocol: Protocol, settings: list[str], config: str | None) -> None:
    """What ``--set`` says is in the configuration of the method, and leaves the preset as it is. Other records say what was set for those
    that come after their stages."""
    spec, path = record.spec, record.path / "spec.json"
    try:
        preset, method = split_overrides(settings)
        if config is None and protocol.resolve(spec.protocol.preset, preset).modified:
            raise DgbenchError(f"--set preset.{next(iter(preset))}, the run is of the preset as it is")
        for key, value in _configured(spec.method, method).items() if not record.shared else ():
            held = spec.method.config.get(key, "nothing of that name")
            if held not in (value, method[key]):
                raise DgbenchError(f"--set {key}={method[key]}, the run is with {held}")
    except DgbenchError as error:
        raise DgbenchError(f"{path}: command has {error}") from None


def _configured(method: MethodRef, said: dict[str, str]) -> dict[str, Any]:
    """The values that ``said`` means, as a configuration holds them."""
    info = discover().get(method.name)
    if isinstance(info, MethodInfo) and info.version == method.version:
        whole = info.configure(said).model_dump(mode="json")
        return {key: whole[key] for key in said}
    return {key: parse_value(text) for key, text in said.items()}
