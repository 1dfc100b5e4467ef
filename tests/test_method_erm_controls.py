"""The control rows erm_balanced and erm_long: one case per center, three times the draws, and all else as erm."""

import pytest
import torch
from method_fixtures import cases, make, paper_cost

from dgbench.data.sampling import draw_cases
from dgbench.info import MethodConfig
from dgbench.method import Method
from dgbench.protocol import load_protocol
from dgbench.registry import find_method, load_class
from dgbench.training.step import TrainingContext

CONTROLS = ("erm_balanced", "erm_long")


def build(name: str) -> Method[MethodConfig]:
    cls: type[Method[MethodConfig]] = load_class(find_method(name))
    return make(cls)


def test_erm_itself_is_what_it_was() -> None:
    info = find_method("erm")
    assert (info.target, info.version, info.draws_factor) == ("dgbench_methods.erm.method:ERM", 1, 1)
    assert not info.needs
    assert info.configure().model_dump() == {}
    assert build("erm").sampling(0, 10) == "pooled"
    assert type(build("erm")).training_step is Method.training_step


@pytest.mark.parametrize("name", CONTROLS)
def test_weights_loss_and_prediction_are_those_of_erm(name: str) -> None:
    erm, control = build("erm"), build(name)
    assert all(torch.equal(value, control.state_dict()[key]) for key, value in erm.state_dict().items())
    for count in (1, 2, 3):
        data = cases(tuple(range(count)))
        losses = [method.eval().training_step(data, TrainingContext())["loss"] for method in (erm, control)]
        assert torch.equal(*losses)
        assert torch.equal(erm.predict(data.image), control.predict(data.image))


@pytest.mark.parametrize("n_sources", [2, 3])
def test_balanced_draws_one_case_of_every_center_and_each_as_often(n_sources: int) -> None:
    """Centers of very different size: pooled draws follow the sizes, balanced ones do not."""
    domains = [domain for domain, cases in enumerate((40, 8, 12)[:n_sources]) for _ in range(cases)]
    counts = {}
    for name in ("erm", "erm_balanced"):
        method = build(name)
        drawn = [
            [domains[index] for index in draw_cases(5, step, n_sources, domains, method.sampling(step, 120))]
            for step in range(120)
        ]
        if name == "erm_balanced":
            assert all(sorted(step) == list(range(n_sources)) for step in drawn)
        counts[name] = [sum(step.count(domain) for step in drawn) for domain in range(n_sources)]
    assert counts["erm_balanced"] == [120] * n_sources
    assert counts["erm"][0] > 3 * counts["erm"][1]


def test_balanced_says_what_it_needs() -> None:
    info = find_method("erm_balanced")
    assert "domain-batch" in info.needs
    assert info.min_sources == 2
    assert info.draws_factor == 1


def test_long_takes_three_times_the_steps_and_is_labelled() -> None:
    info = find_method("erm_long")
    resolved = load_protocol("phantom").resolve("demo")
    for stage in resolved.protocol.stages:
        assert resolved.steps(stage, info.draws_factor) == 3 * resolved.steps(stage, find_method("erm").draws_factor)
    assert "control" in info.title
    assert "control" in find_method("erm_balanced").title
    assert build("erm_long").sampling(0, 10) == "pooled"


@pytest.mark.parametrize("name", CONTROLS)
def test_cost_is_that_of_erm(name: str) -> None:
    assert paper_cost(name) == paper_cost("erm")
