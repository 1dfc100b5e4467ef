"""Empirical risk minimisation: the baseline that every other row is read against."""

from dgbench.info import MethodInfo

INFO = MethodInfo(
    name="erm",
    target="dgbench_methods.erm.method:ERM",
    title="Empirical risk minimisation",
    paper="Vapnik, NeurIPS 1991",
    year=1991,
)
