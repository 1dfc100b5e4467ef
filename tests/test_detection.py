"""Detection beside the ranking: lesions found, false positives, and distances over what was found."""

from pathlib import Path

import pytest
from leaderboard_runs import (
    CENTERS,
    EMPTY_PREDICTION,
    EMPTY_REFERENCE,
    add_run,
    case_row,
    compiled,
    only_table,
    row_of,
    terminal,
)


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


def test_detection_counts_lesions_and_false_positives(tmp_path: Path) -> None:
    """Over the cases of a center, then over centers with equal weight; lesion-free cases count for nothing else."""
    free = [
        case_row("NIH", index, float("nan"), **EMPTY_REFERENCE, role="lesion-free", n_false_positive=count)
        for index, count in enumerate((0, 3))
    ]
    for center, found in zip(CENTERS, ((1, 1), (1, 0), (0, 0)), strict=True):
        cases = [
            case_row(center, index, 0.5, n_lesions_found=hit, n_false_positive=2 * index)
            for index, hit in enumerate(found)
        ]
        add_run(tmp_path, "erm", center, cases=[*cases, *free])
    row = row_of(only_table(tmp_path), "erm")
    assert {center: result.scores["sensitivity"].mean for center, result in row.centers.items()} == dict(
        zip(CENTERS, (1.0, 0.5, 0.0), strict=True)
    )
    assert row.mean["sensitivity"].mean == pytest.approx(0.5)
    assert row.mean["false_positives"].mean == pytest.approx(1.0)
    assert row.mean["false_positives_lesion_free"].mean == pytest.approx(1.5)
    assert row.mean["dsc"].mean == pytest.approx(0.5)
    assert "FP per lesion-free case" in terminal(compiled(tmp_path))


def test_a_failed_lesion_free_case_is_no_perfect_one(tmp_path: Path) -> None:
    """Nothing was predicted for it: it is left out of the mean, and told."""
    for center, judged in zip(CENTERS, (2, 1, 0), strict=True):
        free = [
            case_row(
                "NIH", index, float("nan"), **EMPTY_REFERENCE, role="lesion-free", n_false_positive=4, failed=False
            )
            if index < judged
            else case_row(
                "NIH", index, float("nan"), **EMPTY_REFERENCE, role="lesion-free", n_false_positive=0, failed=True
            )
            for index in range(2)
        ]
        add_run(tmp_path, "erm", center, cases=[case_row(center, 0, 0.5), *free])
    row = row_of(only_table(tmp_path), "erm")
    found = {center: result.scores.get("false_positives_lesion_free") for center, result in row.centers.items()}
    assert {center: score and score.mean for center, score in found.items()} == {"MSD": 4.0, "RENJI": 4.0, "RMYY": None}
    assert "failed lesion-free cases (left out of their false positives) 3/6" in row.notes


def test_distances_among_detected_know_no_constant(tmp_path: Path) -> None:
    for center in CENTERS:
        add_run(tmp_path, "erm", center, cases=[case_row(center, 0, 0.5), case_row(center, 1, 0.0, **EMPTY_PREDICTION)])
    row = row_of(only_table(tmp_path), "erm")
    alone = case_row("MSD", 0, 0.5)
    assert row.mean["hd95_detected"].mean == pytest.approx(alone["hd95"])
    assert row.mean["hd95"].mean == pytest.approx((alone["hd95"] + 100) / 2)
    assert "false_positives_lesion_free" not in row.mean, "no such case was evaluated"
    assert "not evaluated" in terminal(compiled(tmp_path))
