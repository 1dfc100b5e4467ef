"""Empirical risk minimisation: the baseline that every other row is read against, and its two control rows."""

from dgbench.info import MethodInfo

INFO = MethodInfo(
    name="erm",
    target="dgbench_methods.erm.method:ERM",
    title="Empirical risk minimisation",
    paper="Vapnik, NeurIPS 1991",
    year=1991,
)
BALANCED = MethodInfo(
    name="erm_balanced",
    target="dgbench_methods.erm.method:BalancedERM",
    title="Empirical risk minimisation, one case per center (control)",
    paper=INFO.paper,
    year=INFO.year,
    needs=frozenset({"domain-batch"}),
    min_sources=2,
)
LONG = MethodInfo(
    name="erm_long",
    target=INFO.target,
    title="Empirical risk minimisation, three times the draws (control)",
    paper=INFO.paper,
    year=INFO.year,
    draws_factor=3,
)
VARIANTS = (BALANCED, LONG)
