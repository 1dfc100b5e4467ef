"""The conformance suite: every promise has a method that breaks it and is caught in one line; four methods of different kinds keep all."""

from pathlib import Path

import broken_plugins
import pytest

from dgbench.info import MethodInfo
from dgbench.method import Method
from dgbench.registry import discover, find_method
from dgbench.testing import CHECKS, MethodConformance, Outcome, check_method, checks

DEFAULT = ("erm", "mixstyle", "dualtask", "randconv")
"""An augmentation, a feature method and a multi-task method, beside the plain one; the others are checked by the slow suite."""

BROKEN = {
    "Unbuildable": (checks.builds, "ValueError: three centers are needed"),
    "FlatLand": (checks.builds, "ValueError: not enough values to unpack"),
    "Reseeding": (checks.leaves_global_generators, "step 0: the global generator of torch was used or reseeded"),
    "ReseedingAtBirth": (checks.leaves_global_generators, "building: the global generator of torch"),
    "NumpyNoise": (checks.leaves_global_generators, "step 0: the global generator of numpy"),
    "PythonNoise": (checks.leaves_global_generators, "step 0: the global generator of random"),
    "Diverging": (checks.finite_losses, "step 0: extra is inf"),
    "WidePrecision": (
        checks.mixed_precision,
        "RuntimeError: expected dtype float for `end` but got dtype c10::BFloat16",
    ),
    "Detached": (checks.gradients_reach_the_backbone, "weights of the backbone never move: stem.weight"),
    "Logits": (checks.output_shape, "probabilities are expected"),
    "Cropped": (checks.output_shape, "predict gives (1, 1, 15, 16, 16) for (1, 1, 16, 16, 16)"),
    "Restless": (checks.deterministic, "two trainings with one seed differ in losses of step 0"),
    "Sociable": (checks.evaluation_is_repeatable, "a batch mate changes the prediction by up to"),
    "Adapting": (checks.evaluation_is_repeatable, "prediction changes the state: seen"),
    "Forgetful": (checks.resumes_exactly, "resumed after step 4"),
    "Hoarding": (checks.two_devices, "after step 0 two devices differ in method/brightness"),
    "OwnBackward": (checks.two_devices, "after step 0 two devices differ in method/backbone"),
    "Moody": (checks.two_devices, "exchange 0 of the step is not made alike on every device"),
    "Peeking": (checks.opens_no_file, "opens /etc/hostname"),
    "Pairwise": (checks.three_source_centers, "ValueError: too many values to unpack"),
    "Uncountable": (checks.countable, "no counting rule for layer scale"),
}


def outcome_of(cls: type[Method], check: checks.Check) -> Outcome:  # type: ignore[type-arg]
    (outcome,) = check_method(cls.info, checks=[check])
    return outcome


@pytest.mark.parametrize("name", BROKEN)
def test_broken_promise_is_caught_in_one_line(name: str) -> None:
    check, line = BROKEN[name]
    outcome = outcome_of(getattr(broken_plugins, name), check)
    assert outcome.problem is not None
    assert line in outcome.problem
    assert "\n" not in outcome.problem


def test_every_check_has_a_method_that_breaks_it() -> None:
    assert {check for check, _ in BROKEN.values()} | {checks.card_is_complete} == set(CHECKS)


@pytest.mark.parametrize(
    ("card", "line"),
    [
        (None, "no card"),
        ("## What is computed\n## Choices\n", "the card lacks the section ## Configuration"),
        ("## What is computed\n## Configuration\n## Choices\n", "the card does not explain `strength`"),
    ],
)
def test_card_is_looked_at(card: str | None, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dgbench.cli.plugins import find_plugin, write_plugin

    folder, _ = write_plugin("carded", tmp_path, 2026)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(checks, "card", lambda info: card)
    (outcome,) = check_method(find_plugin(str(folder)), checks=[checks.card_is_complete])
    assert outcome.problem is not None
    assert line in outcome.problem


class TestErm(MethodConformance):
    method = "erm"


class TestMixStyle(MethodConformance):
    method = "mixstyle"


class TestRandConv(MethodConformance):
    method = "randconv"


class TestDualTask(MethodConformance):
    method = "dualtask"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name, info in discover().items() if isinstance(info, MethodInfo) and name not in DEFAULT]
)
def test_method_keeps_the_contract(name: str) -> None:
    problems = [(one.check, one.problem) for one in check_method(find_method(name)) if one.problem]
    assert not problems
