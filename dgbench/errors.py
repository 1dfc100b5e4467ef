"""The one exception that users see: a single line that says what is wrong, where, and what to do."""

import difflib
from collections.abc import Iterable


class DgbenchError(Exception):
    """A mistake in input, configuration or environment; the command line prints it as one line and exits with code 2."""


class HeldOutAccessError(DgbenchError):
    """A training process tried to open a case that is not on its allow-list (architecture.md §3, rule 1)."""


class Diverged(DgbenchError):
    """A training whose loss or weights are not finite: it follows from its settings, and would come again."""


class NotApplicable(DgbenchError):
    """A method that cannot take part in a cell of a leaderboard (dimensions, number of source centers): "n/a", not a failure."""


class Interrupted(Exception):
    """Training was asked to stop (Ctrl-C, SIGTERM, SIGUSR1) and saved its state; the same command goes on from there."""


def suggest(word: str, known: Iterable[str]) -> str:
    """A ` — did you mean …?` / ` — known: …` tail for a message about an unknown ``word``."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    if close:
        return f" — did you mean {close[0]!r}? (known: {', '.join(names)})"
    return f" — known: {', '.join(names) or 'none'}"
