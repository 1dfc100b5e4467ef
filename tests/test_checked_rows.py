"""Rows of an evaluation that no evaluation wrote: each is a hole with its reason, never the end of a leaderboard."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from leaderboard_runs import CENTERS, PROTOCOL, add_run, case_row, cell, compiled, only_table, row_of, write_two_seeds
from pyarrow import parquet

from dgbench.errors import DgbenchError
from dgbench.leaderboard.checked_rows import COLUMNS, FLAGS, FRACTIONS, LARGEST, MAX_TEXT, TEXTS
from dgbench.leaderboard.export import to_json
from dgbench.leaderboard.page.cases import case_scores
from dgbench.store.cases import read_cases


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def forged(tmp_path: Path) -> Path:
    """The rows of a run beside sound ones of the same center."""
    for center in CENTERS:
        add_run(tmp_path, "erm", center, cases=cell(center, 0.4, 0.6))
        folder = add_run(tmp_path, "randconv", center, cases=cell(center, 0.5, 0.7))
    return folder / "evaluation/cases.parquet"


def with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


def undecodable(count: int) -> pa.Array:
    return pa.Array.from_buffers(pa.string(), count, pa.array([b"\xff"] * count, pa.binary()).buffers())


Change = Callable[[pa.Table], pa.Table]

FORGED: dict[str, tuple[Change, str]] = {
    "a field of that name inside another column": (
        lambda t: t.drop_columns("dsc").append_column("x", pa.array([{"dsc": 0.5}] * len(t))),
        "no column dsc",
    ),
    "no column of text": (lambda t: t.drop_columns("setting"), "no column setting"),
    "text that cannot be decoded": (lambda t: with_column(t, "setting", undecodable(len(t))), "Invalid UTF8 sequence"),
    "a name that cannot be decoded": (lambda t: with_column(t, "case", undecodable(len(t))), "Invalid UTF8 sequence"),
    "a text without end": (
        lambda t: with_column(t, "stage", pa.array(["x" * (MAX_TEXT + 1)] * len(t))),
        f"stage holds a text of more than {MAX_TEXT} bytes",
    ),
    "bytes for a name": (
        lambda t: with_column(t, "case", t["case"].cast(pa.binary())),
        "case holds binary, expected text",
    ),
    "a list for a number": (
        lambda t: with_column(t, "dsc", pa.array([[0.5]] * len(t))),
        "dsc holds list<element: double>, expected numbers",
    ),
    "a thousand fields for a number": (
        lambda t: with_column(t, "dsc", pa.array([{f"field{i}": 1 for i in range(1000)}] * len(t))),
        "dsc holds struct<field0: int64",
    ),
    "an undefined threshold": (
        lambda t: with_column(t, "threshold", pa.array([float("nan"), 0.5])),
        "1 rows without threshold",
    ),
    "more lesions than there are": (
        lambda t: with_column(t, "n_false_positive", pa.array([2**63 - 1] * len(t))),
        "n_false_positive 9.22337e+18 is not a count",
    ),
    "a distance beyond all scans": (
        lambda t: with_column(t, "hd95", pa.array([1e308] * len(t))),
        f"hd95 1e+308 is not from 0 to {LARGEST:g}",
    ),
    "stages mixed": (
        lambda t: with_column(t, "stage", pa.array(["tumor-fine", "tumor-coarse"])),
        "evaluation holds rows of several stages in setting F-Seg (tumor-coarse, tumor-fine)",
    ),
}


@pytest.mark.parametrize("name", FORGED)
def test_what_no_evaluation_wrote_is_a_hole_with_its_reason(name: str, forged: Path, tmp_path: Path) -> None:
    change, reason = FORGED[name]
    parquet.write_table(change(parquet.read_table(forged)), forged)
    table = only_table(tmp_path)
    (hole,) = table.missing
    assert reason in hole.reason
    assert len(hole.reason) < 400
    assert str(tmp_path) not in hole.reason
    assert row_of(table, "erm").rank == 1
    assert to_json(compiled(tmp_path))


@pytest.mark.parametrize("place", ["/dev/zero", "a pipe"])
def test_what_is_no_file_is_not_read(place: str, forged: Path, tmp_path: Path) -> None:
    forged.unlink()
    if place == "a pipe":
        os.mkfifo(forged)
    else:
        forged.symlink_to(place)
    (hole,) = only_table(tmp_path).missing
    assert "no regular file" in hole.reason


@pytest.mark.parametrize("kind", [pa.string_view(), pa.binary(), pa.large_binary()], ids=str)
def test_names_are_text_or_refused(kind: pa.DataType, forged: Path) -> None:
    """pandas would make text of them after the look at where names lead."""
    table = parquet.read_table(forged)
    parquet.write_table(with_column(table, "case", pa.array([b"../../x", b"b"]).cast(kind)), forged)
    with pytest.raises(DgbenchError, match=r"case holds .*, expected text|names no case"):
        read_cases(forged.parent)


def test_a_column_that_is_there_twice_is_refused(forged: Path) -> None:
    table = parquet.read_table(forged)
    parquet.write_table(table.append_column("case", table["center"]), forged)
    with pytest.raises(DgbenchError, match="columns case are missing or there twice"):
        read_cases(forged.parent)


def test_an_unknown_count_of_a_lesion_free_case_is_left_out(tmp_path: Path) -> None:
    for center in CENTERS:
        free = [case_row("NIH", index, 0.5, role="lesion-free", n_false_positive=2) for index in range(2)]
        add_run(tmp_path, "erm", center, cases=[*cell(center, 0.4), *free])
    path = next(tmp_path.glob("*/*/*/*/evaluation/cases.parquet"))
    table = parquet.read_table(path)
    parquet.write_table(with_column(table, "n_false_positive", pa.array([0.0, 2.0, float("nan")])), path)
    row = row_of(only_table(tmp_path), "erm")
    assert row.mean["false_positives_lesion_free"].mean == 2


def test_scores_of_cases_are_read_again_for_the_page(forged: Path, tmp_path: Path) -> None:
    found = case_scores(compiled(tmp_path), tmp_path, PROTOCOL)
    scores = found[forged.parents[1].relative_to(tmp_path).as_posix()]
    assert [score.dsc for score in scores.values()] == [0.5, 0.7]


@pytest.fixture
def two_seeds(tmp_path: Path) -> Path:
    return write_two_seeds(tmp_path)


DAMAGED_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "text for a number": ({"dsc": "0.5x"}, "dsc holds text, expected numbers"),
    "text for a count": ({"n_lesions_found": "a"}, "n_lesions_found holds text, expected numbers"),
    "half a lesion": ({"n_lesions_found": 0.5}, "n_lesions_found 0.5 is not a count"),
    "text for a threshold": ({"threshold": "0.5"}, "threshold holds text, expected numbers"),
    "no threshold": ({"threshold": None}, "1 rows without threshold"),
    "text for a flag": ({"failed": "no"}, "failed holds text, expected true or false"),
    "no flag": ({"failed": None}, "1 rows without failed"),
    "a number for a case": ({"case": 3}, "case holds numbers, expected text"),
    "no case": ({"case": None}, "1 rows without case"),
    "DSC above 1": ({"dsc": 2.0}, "dsc 2 is not from 0 to 1"),
    "NSD below 0": ({"nsd": -0.1}, "nsd -0.1 is not from 0 to 1"),
    "a negative distance": ({"hd95": -5.0}, "hd95 -5 is not from 0 to 1e+12"),
    "an infinite distance": ({"hd95": float("inf")}, "hd95 inf is not from 0 to 1e+12"),
}


@pytest.mark.parametrize("name", DAMAGED_ROWS)
def test_one_damaged_table_is_a_hole_and_not_the_end(name: str, two_seeds: Path) -> None:
    change, reason = DAMAGED_ROWS[name]
    add_run(two_seeds, "dualtask", "MSD", cases=[case_row("MSD", 0, 0.5) | change])
    table = only_table(two_seeds)
    assert {hole.reason for hole in table.missing if (hole.heldout, hole.seed) == ("MSD", 0)} == {
        f"evaluation is damaged: {reason}"
    }
    assert row_of(table, "erm").rank == 2
    assert json.loads(to_json(compiled(two_seeds)))


def test_every_raw_column_has_a_kind() -> None:
    counts = [column for column in COLUMNS if column.startswith("n_")]
    measures = {"assd", "assd_two_means", "hd95", "centroid_mm", "volume_prediction_mm3"}
    assert sorted([*TEXTS, *FLAGS, *FRACTIONS, *counts, *measures]) == sorted(COLUMNS)


def test_a_column_that_is_there_twice_is_damage(two_seeds: Path) -> None:
    folder = add_run(two_seeds, "dualtask", "MSD", cases=cell("MSD", 0.5))
    path = folder / "evaluation/cases.parquet"
    table = parquet.read_table(path)
    parquet.write_table(table.append_column("dsc", table["nsd"]), path)
    reasons = {hole.reason for hole in only_table(two_seeds).missing if (hole.heldout, hole.seed) == ("MSD", 0)}
    assert reasons == {"evaluation is damaged: it holds dsc more than once"}
