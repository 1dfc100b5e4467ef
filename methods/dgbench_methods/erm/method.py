"""Empirical risk minimisation."""

from dgbench.info import MethodConfig
from dgbench.method import Method
from dgbench_methods.erm import INFO


class ERM(Method[MethodConfig]):
    """The contract's defaults: Dice and cross-entropy (dual-task paper, Eq. 2) on pooled source cases."""

    info = INFO
