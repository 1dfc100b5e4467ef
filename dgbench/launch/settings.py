"""What a request sets: overrides of the preset and settings of the method, by hand or from a configuration file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dgbench.errors import DgbenchError
from dgbench.info import MethodConfig, MethodInfo
from dgbench.protocol import Protocol, ResolvedProtocol
from dgbench.store.folder import DataRef, TunedRef
from dgbench.store.keys import diff
from dgbench.store.study import StudySpec, read_configuration, read_run_config, tunable
from dgbench.training.job import protocol_reference


class Settings(NamedTuple):
    """The protocol and the method as they will run, and the study that chose the settings; None where none did, or a hand changed them."""

    resolved: ResolvedProtocol
    config: MethodConfig
    tuned: TunedRef | None


def assign_configs(files: Sequence[Path], cells: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Path | None]:
    """Which of the configuration files of a sweep each of its ``cells`` (method, held-out center) takes. A file that names no method,
    or no center, is for all of them. Without files, no cell takes one.

    Raises:
        DgbenchError: a file cannot be read, two are for the same cell, a cell has none, or a file is for none of the cells.
    """
    stated = {path: read_run_config(path) for path in files}
    taken: dict[tuple[str, str], Path | None] = dict.fromkeys(cells)
    for method, heldout in cells if files else ():
        where = f"method {method} with {heldout} held out"
        fit = [p for p, one in stated.items() if one.method in (None, method) and one.heldout in (None, heldout)]
        if len(fit) != 1:
            told = f"{' and '.join(map(str, fit))} are" if fit else "no file is"
            raise DgbenchError(
                f"--config: {told} for {where} — each cell of a sweep takes one; tune for those that lack one, or sweep the others"
            )
        taken[method, heldout] = fit[0]
    if spare := [str(path) for path in files if path not in taken.values()]:
        raise DgbenchError(
            f"--config {spare[0]}: is for a method or center that this sweep does not run — leave it out"
        )
    return taken


def split_overrides(overrides: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """``--set`` texts as (preset overrides without their ``preset.`` prefix, method configuration). Raises DgbenchError for a text
    without '='."""
    preset: dict[str, str] = {}
    method: dict[str, str] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise DgbenchError(f"--set {text!r}: expected key=value")
        key = key.strip()
        if key.startswith("preset."):
            preset[key.removeprefix("preset.")] = value
        else:
            method[key] = value
    return preset, method


def resolve_settings(
    protocol: Protocol, preset: str, info: MethodInfo, heldout: str, overrides: Sequence[str], file: Path | None
) -> Settings:
    """Apply a configuration file and then ``overrides``, which win over it.

    A run whose numbers follow from the configuration that a study selected, and from nothing set by hand, counts as tuned: it does not
    become "modified", as it would by a learning rate that was set by hand.

    Raises:
        DgbenchError: an unknown key or unfit value, or a study of another protocol, preset or method.
    """
    by_hand, method = split_overrides(overrides)
    if file is None:
        return Settings(protocol.resolve(preset, by_hand), info.configure(method), None)
    found = read_configuration(file, info.name, heldout)
    resolved = protocol.resolve(preset, {**found.preset, **by_hand})
    config = info.configure({**found.config, **method})
    if found.tuned is None or found.study is None:
        return Settings(resolved, config, None)
    _check_study(file, found.study, protocol, preset, info)
    selected = tuned_protocol(protocol, preset, found.preset, found.study)
    if config != info.configure(found.config) or resolved.identity() != selected.identity():
        return Settings(resolved, config, None)
    standing = resolved.model_copy(update={"modified": selected.modified})
    return Settings(standing, config, found.study.reference(found.tuned.trials))


def tuned_protocol(protocol: Protocol, preset: str, chosen: Mapping[str, str], study: StudySpec) -> ResolvedProtocol:
    """The protocol with what a study chose, which is not modified unless the study's own was. Raises DgbenchError where it holds what no
    study may choose."""
    resolved = protocol.resolve(preset, chosen)
    if study.protocol.modified:
        return resolved
    if foreign := sorted(chosen.keys() - tunable(protocol)):
        raise DgbenchError(f"study {study.key[:8]}: preset.{foreign[0]} is nothing that tuning chooses — tune again")
    return resolved.model_copy(update={"modified": False})


def check_data(file: Path, data: DataRef) -> None:
    """Raise DgbenchError where the study behind a tuned configuration had other source data than ``data``."""
    if changed := diff(StudySpec.read(file.parent).data.centers, data.centers):
        raise DgbenchError(f"--config {file}: was tuned on other data ({changed[0]}) — tune again")


def _check_study(file: Path, study: StudySpec, protocol: Protocol, preset: str, info: MethodInfo) -> None:
    """The study must have tuned for what the configuration is used on."""
    expected = protocol_reference(protocol.resolve(preset))
    for what, wanted, stated in (
        (
            "protocol",
            f"{protocol.name} version {protocol.version}",
            f"{study.protocol.name} version {study.protocol.version}",
        ),
        ("preset", preset, study.protocol.preset),
        ("method version", info.version, study.method.version),
        ("protocol content", expected.content[:8], study.protocol.content[:8]),
    ):
        if wanted != stated:
            raise DgbenchError(f"--config {file}: was tuned with {what} {stated}, not {wanted} — tune again")
