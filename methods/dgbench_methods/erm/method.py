"""Empirical risk minimisation."""

from dgbench.info import MethodConfig
from dgbench.method import Method, Sampling
from dgbench_methods.erm import BALANCED, INFO


class ERM(Method[MethodConfig]):
    """The contract's defaults: Dice and cross-entropy (dual-task paper, Eq. 2) on pooled source cases."""

    info = INFO


class BalancedERM(ERM):
    """The same on one case of every source center per step."""

    info = BALANCED

    def sampling(self, step: int, total_steps: int) -> Sampling:
        """Every center gives as many cases as any other, however many it has."""
        return "per-center"
