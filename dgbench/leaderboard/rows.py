"""Which runs are one row of a table, what the row is called, and the commands of its missing runs."""

import json
import shlex
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from dgbench.leaderboard.statistics import BASELINE
from dgbench.store.folder import RunSpec, TunedRef


def retarget(command: str, heldout: str, seed: int) -> str:
    """A run's command line with another held-out center and seed."""
    words: list[str] = []
    skip = False
    for word in _words(command):
        option, _, value = word.partition("=")
        if skip or option in ("--heldout", "--seed"):
            skip = not skip and not value
            continue
        words.append(word)
    return shlex.join([*words, "--heldout", heldout, "--seed", str(seed)])


def tuning_command(command: str, heldout: str, tuned: TunedRef) -> str:
    """The command that tunes for another held-out center what a run with ``command`` was ``tuned`` for."""
    words = _words(command)
    if "--config" in words:
        place = words.index("--config")
        del words[place : place + 2]
    seed = words[words.index("--seed") + 1] if "--seed" in words[:-1] else "0"
    tune = ["tune" if word == "run" else word for word in words]
    again = retarget(shlex.join(tune), heldout, int(seed) if seed.isdigit() else 0)
    return f"{again} --trials {tuned.trials}{tuned.selection.option}"


def _words(command: str) -> list[str]:
    """The words of a command line; of one that a hand spoiled (an open quote), what stands between spaces."""
    try:
        return shlex.split(command)
    except ValueError:
        return command.split()


def preset_overrides(command: str) -> tuple[str, ...]:
    """The ``--set preset.…`` assignments of a run's command line, sorted: what a modified preset was changed to."""
    words = _words(command)
    assignments = [value for option, value in pairwise(words) if option == "--set"]
    assignments += [word.removeprefix("--set=") for word in words if word.startswith("--set=")]
    return tuple(sorted(value for value in assignments if value.startswith("preset.")))


class RowKey(NamedTuple):
    """What makes two runs seeds or centers of the same row; ``config`` as JSON. A tuned row has a configuration for each center, which its
    studies chose; what makes it one is how many trials they had and by what they selected (``tuned``, in words), and what they were not
    to search."""

    method: str
    version: int
    config: str
    modified: bool
    overrides: tuple[str, ...]
    imported: bool
    tuned: str | None = None
    devices: int = 1

    @classmethod
    def of(cls, spec: RunSpec) -> "RowKey":
        """The row that a run belongs to."""
        devices = max(1, spec.environment.devices)  # an imported set was made on none that is known
        if spec.tuned is not None and not spec.protocol.modified:
            settings = spec.tuned.settings
            return cls(spec.method.name, spec.method.version, "{}", False, settings, False, spec.tuned.words, devices)
        modified = spec.protocol.modified
        overrides = preset_overrides(spec.command) if modified else ()
        config = json.dumps(spec.method.config, sort_keys=True)
        imported = spec.method.imported
        return cls(spec.method.name, spec.method.version, config, modified, overrides, imported, None, devices)


def baseline_of(rows: Iterable[RowKey]) -> RowKey | None:
    """The row that others are compared with: the baseline as the protocol has it, neither modified nor tuned; of several its latest
    version, on the fewest devices, in the configuration that sets least."""
    plain = [key for key in rows if key.method == BASELINE and not key.modified and key.tuned is None]
    return min(plain, key=lambda key: (-key.version, key.devices, len(key.config), key.config), default=None)


def row_labels(rows: Iterable[RowKey]) -> dict[RowKey, str]:
    """The method's name, and whatever tells its rows in this table apart: version, configuration, preset overrides. Where a row of the
    method is tuned, that row says ``tuned(trials)`` and the method as it is ``default``; several devices are always named. No two rows
    have one label."""
    keys = list(rows)
    labels = {}
    for key in keys:
        siblings = [other for other in keys if other.method == key.method]
        configs = [json.loads(other.config) for other in siblings if other.tuned is None]
        parts = [f"v{key.version}"] if len({other.version for other in siblings}) > 1 else []
        parts += [
            f"{option}={value}"
            for option, value in json.loads(key.config).items()
            if any(config.get(option) != value for config in configs)
        ]
        parts += key.overrides or (["modified"] if key.modified else [])  # a hand took the options out of the command
        # a method may have come later that has the name of the set
        parts += ["imported"] if key.imported and not all(other.imported for other in siblings) else []
        if key.tuned is not None:
            parts.insert(0, f"tuned({key.tuned})")
        elif not parts and any(other.tuned is not None for other in siblings):
            parts = ["default"]
        parts += [f"{key.devices} devices"] if key.devices > 1 else []
        labels[key] = f"{key.method} ({', '.join(parts)})" if parts else key.method
    return labels
