"""Policies and summaries on tables small enough to check by hand."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dgbench.errors import DgbenchError
from dgbench.evaluation.metrics import CaseMetrics, case_metrics
from dgbench.leaderboard.policies import PAPER, RAW_COLUMNS, apply_policy, default, summarise

DEFAULT = default(assd_constant_mm=30.0, hd95_constant_mm=80.0)
RESOLVED = ["dsc", "nsd", "asd", "hd95", "centroid"]
NAN = float("nan")


def row(case: str, **values: Any) -> dict[str, Any]:
    """A raw row of a case with two non-empty masks, changed by ``values``."""
    return {
        "case": case,
        "center": "RENJI",
        "stage": "tumor-fine",
        "setting": "F-Seg",
        "threshold": 0.5,
        "checkpoint": "source-val",
        "failed": False,
        "empty_reference": False,
        "empty_prediction": False,
        "dsc": 0.8,
        "nsd": 0.7,
        "assd": 1.0,
        "assd_two_means": 1.25,
        "hd95": 4.0,
        "hd95_max": 5.0,
        "centroid_mm": 2.0,
        "volume_reference_mm3": 100.0,
        "volume_prediction_mm3": 90.0,
        "n_lesions_reference": 2,
        "n_lesions_found": 1,
        "n_false_positive": 3,
    } | values


UNDEFINED = {"assd": NAN, "assd_two_means": NAN, "hd95": NAN, "hd95_max": NAN, "centroid_mm": NAN}
NO_PREDICTION = UNDEFINED | {
    "empty_prediction": True,
    "dsc": 0.0,
    "nsd": 0.0,
    "n_lesions_found": 0,
    "n_false_positive": 0,
}
NO_PREDICTION |= {"volume_prediction_mm3": 0.0}
NO_REFERENCE = UNDEFINED | {
    "empty_reference": True,
    "dsc": 0.0,
    "nsd": 0.0,
    "n_lesions_reference": 0,
    "n_lesions_found": 0,
}
NEITHER = NO_REFERENCE | NO_PREDICTION | {"dsc": NAN, "nsd": NAN, "n_false_positive": 0}
FAILED = {name: None for name in row("x") if name not in RAW_COLUMNS[:6]}
FAILED |= {"failed": True, "empty_reference": False, "n_lesions_reference": 2}


@pytest.fixture
def raw() -> pd.DataFrame:
    return pd.DataFrame(
        [
            row("01"),
            row("02", dsc=0.6, nsd=0.5, assd=3.0, assd_two_means=3.5, hd95=10.0, centroid_mm=6.0),
            row("03", **NO_PREDICTION),
            row("04", **NO_REFERENCE),
            row("05", **NEITHER),
            row("06", **FAILED),
        ]
    )


def test_default_policy_resolves_each_kind_of_case(raw: pd.DataFrame) -> None:
    resolved = apply_policy(raw, DEFAULT)
    excluded = [NAN] * 5
    expected = [[0.8, 0.7, 1.0, 4.0, 2.0], [0.6, 0.5, 3.0, 10.0, 6.0], [0, 0, 30, 80, 80], excluded, excluded]
    np.testing.assert_array_equal(resolved[RESOLVED], [*expected, [0, 0, 30, 80, 80]])
    assert resolved["included"].tolist() == [True, True, True, False, False, True]
    assert resolved["detected"].tolist() == [True, True, False, False, False, False]
    assert resolved["empty_prediction"].tolist() == [False, False, True, False, True, True]
    np.testing.assert_array_equal(resolved["false_positive_mm3"], [NAN, NAN, NAN, 90.0, 0.0, NAN])


def test_paper_policy_includes_every_case(raw: pd.DataFrame) -> None:
    resolved = apply_policy(raw, PAPER)
    undefined = [0, 0, 40, 100, NAN]
    expected = [[0.8, 0.7, 1.25, 4.0, 2.0], [0.6, 0.5, 3.5, 10.0, 6.0], *[undefined] * 4]
    np.testing.assert_array_equal(resolved[RESOLVED], expected)
    assert resolved["included"].all()


def test_counts_stay_whole_numbers(raw: pd.DataFrame) -> None:
    summary = summarise(apply_policy(raw, DEFAULT), ["center"])
    assert all(summary[name].dtype == np.int64 for name in summary if name.startswith("n_"))


def test_raw_rows_are_left_alone(raw: pd.DataFrame) -> None:
    before = raw.copy(deep=True)
    apply_policy(raw, DEFAULT)
    pd.testing.assert_frame_equal(raw, before)


def test_values_left_in_a_failed_row_do_not_count() -> None:
    resolved = apply_policy(pd.DataFrame([row("01", failed=True)]), DEFAULT).iloc[0]
    assert resolved[RESOLVED].tolist() == [0, 0, 30, 80, 80]
    assert (resolved["n_lesions_found"], resolved["n_false_positive"], resolved["volume_prediction_mm3"]) == (0, 0, 0)


def test_a_failed_case_whose_reference_is_unknown_has_a_lesion_that_was_missed() -> None:
    resolved = apply_policy(pd.DataFrame([row("01", failed=True, n_lesions_reference=0), row("02")]), DEFAULT)
    assert resolved["n_lesions_reference"].tolist() == [1, 2]
    assert resolved["n_lesions_found"].tolist() == [0, row("02")["n_lesions_found"]]


def test_what_a_failed_case_could_not_read_is_known_from_other_runs() -> None:
    unread = {"failed": True, "n_lesions_reference": 0}
    rows = [row("01", **unread), row("02", **unread), row("03", **unread), row("01"), row("02", **NO_REFERENCE)]
    resolved = apply_policy(pd.DataFrame(rows), DEFAULT)
    assert resolved["n_lesions_reference"].tolist() == [2, 0, 1, 2, 0]
    assert resolved["included"].tolist() == [True, False, True, True, False], (
        "as in every other run: methods average the same cases"
    )


def test_a_failed_case_without_lesion_is_excluded_and_has_no_false_positive_volume() -> None:
    resolved = apply_policy(
        pd.DataFrame([row("01", failed=True, empty_reference=True, n_lesions_reference=0)]), DEFAULT
    )
    assert not resolved["included"].any()
    assert resolved["false_positive_mm3"].tolist() == [0.0]


def test_summary_counts_and_averages(raw: pd.DataFrame) -> None:
    summary = summarise(apply_policy(raw, DEFAULT), ["center"])
    assert summary["center"].tolist() == ["RENJI"]
    expected = {
        "n": 6,
        "n_excluded": 2,
        "n_failed": 1,
        "n_empty_prediction": 2,
        "n_detected": 2,
        "dsc_mean": 1.4 / 4,
        "dsc_median": 0.3,
        "nsd_mean": 0.3,
        "nsd_median": 0.25,
        "asd_mean": 16.0,
        "asd_median": 16.5,
        "asd_q25": 2.5,
        "asd_q75": 30.0,
        "asd_detected_mean": 2.0,
        "asd_detected_median": 2.0,
        "hd95_mean": 43.5,
        "hd95_median": 45.0,
        "hd95_q25": 8.5,
        "hd95_q75": 80.0,
        "hd95_detected_mean": 7.0,
        "hd95_detected_median": 7.0,
        "centroid_mean": 42.0,
        "centroid_median": 43.0,
        "centroid_q25": 5.0,
        "centroid_q75": 80.0,
        "centroid_detected_mean": 4.0,
        "centroid_detected_median": 4.0,
        "n_lesions": 8,
        "n_lesions_found": 2,
        "n_false_positive": 9,
        "n_empty_reference": 2,
        "false_positive_mm3_mean": 45.0,
    }
    got = summary.iloc[0].drop("center").to_dict()
    assert set(got) == set(expected)
    assert got == pytest.approx(expected, abs=1e-12)


def test_groups_are_kept_apart_and_sorted(raw: pd.DataFrame) -> None:
    other = raw.assign(center="MSD", dsc=raw["dsc"] / 2)
    summary = summarise(apply_policy(pd.concat([raw, other]), DEFAULT), ["center", "setting"])
    assert summary["center"].tolist() == ["MSD", "RENJI"]
    assert summary["dsc_mean"].tolist() == pytest.approx([0.175, 0.35])
    assert summary["n"].tolist() == [6, 6]


def test_a_group_whose_threshold_is_unknown_is_not_dropped(raw: pd.DataFrame) -> None:
    rows = pd.concat([raw, raw.assign(threshold=NAN)], ignore_index=True)
    summary = summarise(apply_policy(rows, DEFAULT), ["threshold"])
    assert summary["n"].tolist() == [6, 6]


def test_a_group_of_excluded_cases_only_has_no_mean() -> None:
    summary = summarise(
        apply_policy(pd.DataFrame([row("01", **NEITHER), row("02", **NO_REFERENCE)]), DEFAULT), ["center"]
    )
    line = summary.iloc[0]
    assert (line["n"], line["n_excluded"], line["n_empty_prediction"]) == (2, 2, 0)
    assert all(math.isnan(line[f"{metric}_mean"]) for metric in RESOLVED)


@pytest.mark.parametrize("column", ["stage", "setting", "threshold", "checkpoint"])
def test_a_group_never_mixes_alternatives(raw: pd.DataFrame, column: str) -> None:
    rows = apply_policy(pd.concat([raw, raw.assign(**{column: 0.9 if column == "threshold" else "other"})]), DEFAULT)
    with pytest.raises(DgbenchError, match=f"mixes several values of {column}"):
        summarise(rows, ["center"])
    assert summarise(rows, ["center", column])["n"].tolist() == [6, 6]


@pytest.mark.parametrize("column", ["dsc", "assd", "centroid_mm", "n_false_positive", "empty_reference", "failed"])
def test_a_hole_in_a_row_that_did_not_fail_is_an_error(raw: pd.DataFrame, column: str) -> None:
    rows = raw.astype({column: object})
    rows.loc[1, column] = None
    with pytest.raises(DgbenchError, match=f"case RENJI/02: no {column}"):
        apply_policy(rows, DEFAULT)


def test_missing_columns_are_named(raw: pd.DataFrame) -> None:
    with pytest.raises(DgbenchError, match="no column failed, hd95"):
        apply_policy(raw.drop(columns=["hd95", "failed"]), DEFAULT)
    with pytest.raises(DgbenchError, match="no column included, detected — call apply_policy first"):
        summarise(raw, ["center"])
    with pytest.raises(DgbenchError, match="no column method"):
        summarise(apply_policy(raw, DEFAULT), ["method"])
    with pytest.raises(DgbenchError, match="name at least one"):
        summarise(apply_policy(raw, DEFAULT), [])


def test_case_metrics_have_every_column_that_a_policy_needs() -> None:
    identity = {"case", "center", "stage", "setting", "threshold", "checkpoint", "failed"}
    assert set(RAW_COLUMNS) <= identity | set(CaseMetrics.__dataclass_fields__)


def test_rows_of_measured_masks_survive_parquet(tmp_path: Path) -> None:
    """Rows made by the metrics and read back from Parquet resolve as rows made by hand."""
    mask, empty = np.zeros((4, 4, 4), bool), np.zeros((4, 4, 4), bool)
    mask[1:3, 1:3, 1:3] = True
    cases = {"a": (mask, mask), "b": (mask, empty), "c": (empty, mask), "d": (empty, empty)}
    rows = [
        row(name, **case_metrics(*masks, (1.0, 1.0, 1.0), nsd_tolerance_mm=1).__dict__) for name, masks in cases.items()
    ]
    pd.DataFrame([*rows, row("e", **FAILED)]).to_parquet(tmp_path / "cases.parquet")
    line = summarise(apply_policy(pd.read_parquet(tmp_path / "cases.parquet"), DEFAULT), ["center"]).iloc[0]
    assert (line["n"], line["n_excluded"], line["n_empty_prediction"], line["n_failed"]) == (5, 2, 2, 1)
    assert (line["dsc_mean"], line["asd_mean"]) == pytest.approx((1 / 3, 20.0))
    assert line["false_positive_mm3_mean"] == pytest.approx(4.0)


def test_importing_policies_loads_neither_torch_nor_pandas() -> None:
    code = "import sys, dgbench.leaderboard.policies; sys.exit(bool({'torch', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
