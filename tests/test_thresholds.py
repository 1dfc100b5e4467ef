"""Thresholds chosen from stored rows: what each rule may look at, and that an oracle is called one."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from leaderboard_runs import CENTERS, EMPTY_PREDICTION, EMPTY_REFERENCE, PROTOCOL, add_run, case_row, compiled, terminal

from dgbench.errors import DgbenchError
from dgbench.leaderboard.compile import compile_runs
from dgbench.leaderboard.records import View
from dgbench.leaderboard.thresholds import choose_threshold, parse_threshold
from dgbench.protocol import load_protocol

PAPER = load_protocol("pancreas-tumor")


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


def rows(center: str, role: str, dsc: dict[float, float], index: int = 0, **changes: Any) -> list[dict[str, Any]]:
    """One case at several thresholds."""
    return [
        case_row(center, index, value, role=role, threshold=threshold, **changes) for threshold, value in dsc.items()
    ]


def chosen(rule: Any, *cases: dict[str, Any], heldout: str = "RENJI") -> float:
    return choose_threshold(
        rule, pd.DataFrame(cases), setting="F-Seg", checkpoint="source-val", heldout=heldout, protocol=PAPER
    )


def test_source_tuned_sees_source_validation_alone_and_oracle_the_target_alone() -> None:
    source, target = rows("MSD", "source-val", {0.3: 0.9, 0.7: 0.1}), rows("RENJI", "held-out", {0.3: 0.1, 0.7: 0.9})
    assert chosen("source-tuned", *source, *target) == 0.3
    assert chosen("oracle", *source, *target) == 0.7
    assert chosen(0.4, *source, *target) == 0.4
    assert [chosen("paper", *source, *target, heldout=center) for center in CENTERS] == [0.7, 0.1, 0.9]


def test_centers_weigh_the_same_whatever_their_number_of_cases() -> None:
    many = [row for index in range(5) for row in rows("MSD", "source-val", {0.3: 0.6, 0.7: 0.5}, index)]
    assert chosen("source-tuned", *many, *rows("RMYY", "source-val", {0.3: 0.1, 0.7: 0.9})) == 0.7


def test_empty_predictions_count_nothing_found_and_lesion_free_cases_do_not_count() -> None:
    found = rows("MSD", "source-val", {0.3: 0.4, 0.7: 0.5})
    lost = [
        *rows("MSD", "source-val", {0.3: 0.4}, 1),
        *rows("MSD", "source-val", {0.7: float("nan")}, 1, **EMPTY_PREDICTION),
    ]
    assert chosen("source-tuned", *found, *lost) == 0.3
    assert chosen("source-tuned", *found, *rows("MSD", "source-val", {0.3: 1.0, 0.7: 1.0}, 2, **EMPTY_REFERENCE)) == 0.7


def test_of_equal_thresholds_the_one_nearest_to_the_official_is_taken() -> None:
    assert chosen("oracle", *rows("RENJI", "held-out", {0.2: 0.5, 0.4: 0.5, 0.9: 0.5})) == 0.4
    assert chosen("oracle", *rows("RENJI", "held-out", {0.3: 0.5, 0.7: 0.5})) == 0.3


def test_nothing_to_choose_from_is_a_reason() -> None:
    with pytest.raises(DgbenchError, match=r"no source-val rows of F-Seg, source-val to choose a threshold from"):
        chosen("source-tuned", *rows("RENJI", "held-out", {0.5: 0.5}))
    with pytest.raises(DgbenchError, match="the paper gives no threshold for NIH"):
        chosen("paper", *rows("RENJI", "held-out", {0.5: 0.5}), heldout="NIH")


def test_what_can_be_asked_for() -> None:
    assert parse_threshold("0.3", PROTOCOL) == 0.3
    assert parse_threshold("paper", PAPER) == "paper"
    for text, answer in {
        "paper": "--threshold paper: the paper gives none for the centers of protocol 'phantom'",
        "source-tunde": "--threshold 'source-tunde': neither a number nor a rule — did you mean 'source-tuned'?",
        "1.5": "--threshold 1.5: a threshold lies between 0 and 1",
        "nan": "--threshold nan: a threshold lies between 0 and 1",
    }.items():
        with pytest.raises(DgbenchError) as refused:
            parse_threshold(text, PROTOCOL)
        assert str(refused.value).startswith(answer)


def test_a_table_names_the_chosen_thresholds_and_an_oracle_has_its_own(tmp_path: Path) -> None:
    for position, center in enumerate(CENTERS):
        source = rows(CENTERS[position - 1], "source-val", {0.3: 0.9, 0.5: 0.5, 0.7: 0.1})
        add_run(tmp_path, "erm", center, cases=[*source, *rows(center, "held-out", {0.3: 0.2, 0.5: 0.3, 0.7: 0.4})])
    means = {}
    for rule in (0.5, "source-tuned", "oracle"):
        view = View(threshold=rule)  # type: ignore[arg-type]
        (table,) = compiled(tmp_path, view=view).tables
        (row,) = table.rows
        means[rule] = row.mean["dsc"].mean
        assert table.ranked == (rule == 0.5)
        page = terminal(compiled(tmp_path, view=view))
        assert ("oracle threshold: chosen on the held-out center" in page) == (rule == "oracle")
        if rule != 0.5:
            assert f"threshold {rule}, checkpoint" in page
            value = {"source-tuned": 0.3, "oracle": 0.7}[str(rule)]
            assert f"thresholds MSD {value}, RENJI {value}, RMYY {value}" in row.notes
    assert means == pytest.approx({0.5: 0.3, "source-tuned": 0.2, "oracle": 0.4})


def test_a_run_without_rows_to_choose_from_is_a_hole_with_its_reason(tmp_path: Path) -> None:
    add_run(tmp_path, "erm", "MSD", cases=rows("MSD", "held-out", {0.5: 0.5}))
    (table,) = compile_runs(tmp_path, protocol=PROTOCOL, view=View(threshold="source-tuned")).tables
    assert "no source-val rows" in {hole.heldout: hole.reason for hole in table.missing}["MSD"]


def test_the_papers_thresholds_enter_no_key() -> None:
    other = PAPER.model_copy(update={"paper_thresholds": {}})
    assert PAPER.resolve("bench").identity() == other.resolve("bench").identity()
    assert PAPER.paper_thresholds == {"MSD": 0.7, "RENJI": 0.1, "RMYY": 0.9}
