"""By what a tuning study selects settings (protocol.md §8). Imports nothing, so that command lines can offer it."""

from enum import StrEnum


class Selection(StrEnum):
    """On what a study tells good settings from bad ones (protocol.md §8): validation cases of the centers that were trained at, or each
    source center in turn, judged by a training without it."""

    SOURCE_VAL = "source-val"
    LEAVE_ONE_SOURCE_OUT = "leave-one-source-out"

    @property
    def option(self) -> str:
        """What a command line of ``dgbench tune`` has at its end for it; nothing for the usual one."""
        return "" if self is Selection.SOURCE_VAL else f" --selection {self}"
