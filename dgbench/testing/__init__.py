"""The conformance suite of methods: what the contract promises, checked on small synthetic cases in seconds.

``dgbench methods check NAME`` runs it; in a test file of your own::

    class TestMine(MethodConformance):
        method = "my_package.my_method:MyMethod"
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from dgbench.errors import DgbenchError
from dgbench.info import MethodConfig, MethodInfo
from dgbench.registry import find_method
from dgbench.testing.checks import CHECKS, Check
from dgbench.testing.rehearsal import Problem, Rehearsal, small_setup

__all__ = ["CHECKS", "MethodConformance", "Outcome", "Problem", "Rehearsal", "check_method", "small_setup"]


@dataclass(frozen=True)
class Outcome:
    """One check of one method: ``problem`` is None where it passed."""

    check: str
    problem: str | None
    seconds: float


def check_method(
    info: MethodInfo,
    config: MethodConfig | None = None,
    report: Callable[[Outcome], None] = lambda outcome: None,
    checks: Sequence[Check] = CHECKS,
) -> list[Outcome]:
    """Run ``checks`` on a method, telling each outcome to ``report`` as it comes. Whatever a plugin raises is a problem of its check."""
    rehearsal = Rehearsal(info, config)
    outcomes = []
    for check in checks:
        start = time.perf_counter()
        problem = None
        try:
            check(rehearsal)
        except Exception as error:  # a plugin may fail in any way; the reason is shown
            known = isinstance(error, Problem | DgbenchError)
            problem = " ".join((str(error) if known else f"{type(error).__name__}: {error}").split())
        outcomes.append(Outcome(check.__name__, problem, time.perf_counter() - start))
        report(outcomes[-1])
    return outcomes


class MethodConformance:
    """Base of a pytest class: one test per check for the method named by ``method``."""

    method: ClassVar[str]
    _rehearsals: ClassVar[dict[str, Rehearsal]] = {}

    @classmethod
    def rehearsal(cls) -> Rehearsal:
        """The rehearsal that the class's tests share."""
        if cls.method not in cls._rehearsals:
            cls._rehearsals[cls.method] = Rehearsal(find_method(cls.method))
        return cls._rehearsals[cls.method]


def _test(check: Check) -> Callable[[MethodConformance], None]:
    def test(self: MethodConformance) -> None:
        check(self.rehearsal())

    test.__doc__ = check.__doc__
    return test


for _check in CHECKS:
    setattr(MethodConformance, f"test_{_check.__name__}", _test(_check))
