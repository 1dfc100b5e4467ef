"""The holes of a table: why a cell is empty, and the command that fills it."""

from collections.abc import Collection, Mapping
from dataclasses import replace

from dgbench.leaderboard.records import UNREADABLE, Record
from dgbench.leaderboard.results import Missing
from dgbench.leaderboard.rows import RowKey, retarget, tuning_command
from dgbench.leaderboard.run_results import NOTHING_LEFT

NOT_RUN = "not run"
OTHER_DATA = "counted in another table, with other data"

Place = tuple[RowKey, str, int]
"""Row, held-out center (in-domain a fold) and seed."""


def place_of(record: Record) -> Place:
    """The place that a run fills."""
    return RowKey.of(record.spec), record.spec.heldout, record.spec.seed


def hole_of(label: str, cell: list[Record], members: list[Record], center: str, heldout: str, seed: int) -> Missing:
    """The latest attempt at the cell says why it is empty; without any it was not run."""
    latest = max(cell, key=lambda record: (record.updated, record.folder), default=None)
    reason = latest.reason if latest and latest.reason else NOT_RUN
    command = latest.spec.command if latest else _command_for(members, heldout, seed)
    command = "" if reason.startswith(NOTHING_LEFT) else command
    return Missing(label=label, center=center, heldout=heldout, seed=seed, reason=reason, command=command)


def elsewhere(hole: Missing, key: RowKey, others: Collection[Place]) -> Missing:
    """A hole where a run of other data stands in another table is not one that was never run, and its command would find that run."""
    there = hole.reason == NOT_RUN and (key, hole.heldout, hole.seed) in others
    return replace(hole, reason=OTHER_DATA, command="") if there else hole


def damaged(hole: Missing, method: str, problems: Mapping[str, str]) -> Missing:
    """A hole where a folder of that cell, below the folder ``method``, cannot be read is not one that was never run."""
    cell = f"{method}/seed{hole.seed}-"
    told = [f"{UNREADABLE}: {text}" for folder, text in problems.items() if folder.startswith(cell)]
    return replace(hole, reason=told[0]) if told and hole.reason == NOT_RUN else hole


def _command_for(members: list[Record], heldout: str, seed: int) -> str:
    """The command for a cell that was never run; a center that nothing was tuned for is tuned for first."""
    here = [record.spec for record in members if record.spec.heldout == heldout]
    spec = here[0] if here else members[0].spec
    if spec.tuned is not None and not here:
        return tuning_command(spec.command, heldout, spec.tuned)
    return retarget(spec.command, heldout, seed)
