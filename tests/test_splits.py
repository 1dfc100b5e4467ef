"""A split depends on protocol and data alone, and its parts never overlap."""

from pathlib import Path

import pytest

from dgbench.data.case import Case, Center
from dgbench.data.splits import Split, center_of, make_split, validation_count, without_validation
from dgbench.errors import DgbenchError
from dgbench.protocol import Protocol, load_protocol


@pytest.fixture(scope="module")
def protocol() -> Protocol:
    return load_protocol("phantom")


def hospital(name: str, n_cases: int) -> Center:
    folder = Path("data") / name
    cases = tuple(
        Case(name, f"{name}_{index:04d}", folder / f"{index}.nii.gz", folder / f"{index}.nii.gz")
        for index in range(n_cases)
    )
    return Center(name, folder, cases, {})


def hospitals(**counts: int) -> dict[str, Center]:
    return {name: hospital(name, count) for name, count in counts.items()}


@pytest.mark.parametrize(("n_cases", "expected"), [(3, 0), (4, 2), (13, 2), (14, 3), (67, 11), (100, 15)])
def test_validation_is_fifteen_percent_but_at_least_two(n_cases: int, expected: int) -> None:
    assert validation_count(n_cases, 0.15) == expected


def test_parts_are_disjoint_and_complete(protocol: Protocol) -> None:
    split = make_split(protocol, hospitals(MSD=20, RENJI=9, RMYY=14, NIH=10), "RENJI")
    parts = [set(split.train), set(split.validation), set(split.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 53
    assert {center_of(case) for case in split.test} == {"RENJI"}
    assert {center_of(case) for case in parts[0] | parts[1]} == {"MSD", "RMYY", "NIH"}
    assert split.sources == ("MSD", "RMYY", "NIH")
    assert split.support == ("NIH",)


def test_support_centers_are_left_out_of_stages_that_do_not_ask_for_them(protocol: Protocol) -> None:
    split = make_split(protocol, hospitals(MSD=20, RENJI=9, RMYY=14, NIH=10), "RENJI").for_stage(support_centers=False)
    assert split.sources == ("MSD", "RMYY")
    assert {center_of(case) for case in (*split.train, *split.validation)} == {"MSD", "RMYY"}


def test_a_center_is_divided_alike_whoever_else_is_there(protocol: Protocol) -> None:
    def validation(split: Split) -> set[str]:
        return {case for case in split.validation if center_of(case) == "MSD"}

    first = make_split(protocol, hospitals(MSD=20, RENJI=9, RMYY=14, NIH=10), "RENJI")
    second = make_split(protocol, hospitals(MSD=20, RENJI=30, RMYY=5), "RMYY")
    assert validation(first) == validation(second)


def test_replacing_the_held_out_center_changes_nothing_of_the_sources(protocol: Protocol) -> None:
    first = make_split(protocol, hospitals(MSD=20, RENJI=9, RMYY=14), "RENJI")
    second = make_split(protocol, hospitals(MSD=20, RENJI=40, RMYY=14), "RENJI")
    assert (first.train, first.validation) == (second.train, second.validation)


def test_no_validation_at_all_is_an_error(protocol: Protocol) -> None:
    centers = hospitals(MSD=3, RENJI=9, RMYY=3, NIH=10)
    with pytest.raises(DgbenchError, match="source validation would be empty"):
        make_split(protocol, centers, "RENJI")
    small = make_split(protocol, hospitals(MSD=3, RENJI=9, RMYY=4), "RENJI")
    assert {center_of(case) for case in small.validation} == {"RMYY"}
    assert without_validation(small) == ("MSD",)
    assert without_validation(make_split(protocol, hospitals(MSD=4, RENJI=9, RMYY=4), "RENJI")) == ()


@pytest.mark.parametrize(
    "change",
    [{"support_centers": ("NIH", "RENJI")}, {"centers": ("MSD", "MSD", "RENJI")}, {"support_centers": ("MSD",)}],
)
def test_no_center_is_source_and_held_out_or_a_source_twice(
    protocol: Protocol, change: dict[str, tuple[str, ...]]
) -> None:
    """Also where a protocol was made by hand, so that its own check did not see it."""
    with pytest.raises(DgbenchError, match="held-out RENJI: protocol phantom makes it a source too, or a source twice"):
        make_split(protocol.model_copy(update=change), hospitals(MSD=5, RENJI=5, RMYY=5, NIH=5), "RENJI")


def test_an_unknown_center_is_named_with_a_suggestion(protocol: Protocol) -> None:
    with pytest.raises(DgbenchError, match="did you mean 'RENJI'"):
        make_split(protocol, hospitals(MSD=5, RENJI=5, RMYY=5), "RENJY")
