"""Forged files of every format that is read: whatever they claim is one line, soon, and within the memory that a true one takes."""

import hashlib
import io
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pyarrow as pa
import pytest
import torch
from cli_calls import mistake, run_arguments
from fake_runs import fake_cases
from pyarrow import parquet
from training_fixtures import Mini, quiet

from dgbench.atomic import read_json, write_json
from dgbench.data.case import load_center
from dgbench.data.fingerprint import content_hash
from dgbench.data.importing import split_folder
from dgbench.data.nifti import load_nifti
from dgbench.errors import DgbenchError
from dgbench.evaluation.job import load_result, load_trained
from dgbench.store import checkpoint_file, foreign
from dgbench.store.cases import read_cases
from dgbench.store.checkpoint_file import load_checkpoint, save_checkpoint, unflatten_state
from dgbench.store.slices import CaseSlice
from dgbench.training.loop import train
from dgbench.yaml_text import parse_value, read_yaml

DEEP = 100_000
"""Brackets inside each other: more than any parser's stack holds."""


def one_line(error: pytest.ExceptionInfo[DgbenchError]) -> str:
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000, "a message does not repeat the whole file"
    return str(error.value)


def forge(file: Path, **changes: Any) -> None:
    """Change the JSON of a checkpoint, or the bytes of its tensors, and give it right checksums."""
    sidecar = read_json(file.with_suffix(".json")) | {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()} | changes
    sidecar["check"] = checkpoint_file._check(sidecar)
    write_json(file.with_suffix(".json"), sidecar)


def test_a_type_of_tensors_that_torch_does_not_have(tmp_path: Path) -> None:
    file = save_checkpoint(tmp_path / "last", {}, {})
    header = json.dumps({"w": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header + b"\0")
    forge(file)
    with pytest.raises(DgbenchError, match=r"not a safetensors file \('F4'\)") as error:
        load_checkpoint(tmp_path / "last")
    one_line(error)


def nested(depth: int) -> Any:
    tree: Any = 0
    for _ in range(depth):
        tree = {"tuple": [tree]}
    return tree


@pytest.mark.parametrize(
    "tree",
    [
        {"dict": [[[1], 2]]},
        {"dict": [[1, 2, 3]]},
        {"dict": [7]},
        {"float": "os.system"},
        {"tensor": "not there"},
        {"tensor": ["w"]},
        {"tuple": "ab"},
        nested(3000),
    ],
    ids=lambda tree: str(tree)[:30] if "tuple" not in tree else "tuple",
)
def test_a_forged_state_is_refused(tree: Any) -> None:
    with pytest.raises(DgbenchError, match="not a stored state") as error:
        unflatten_state({}, tree)
    one_line(error)


def test_a_checkpoint_that_names_no_training_is_not_gone_on_with(sound: Mini, tmp_path: Path) -> None:
    job = sound.job(tmp_path, "erm")
    for meta in ({}, [], "x", None, {"key": ["a"]}, {"key": 7}):
        save_checkpoint(job.folder / "last", {}, meta)
        assert load_checkpoint(job.folder / "last").key == "unknown"
    with pytest.raises(DgbenchError, match=r"belongs to another run \(unknown, not ") as error:
        train(job, quiet)
    one_line(error)
    with pytest.raises(DgbenchError, match="no last-step checkpoint of this run"):
        load_trained(job, "last-step", torch.device("cpu"))


@pytest.mark.parametrize("text", ["[" * 600, "{a: " * 600])
def test_yaml_that_is_nested_beyond_reason(mini: Mini, tmp_path: Path, text: str) -> None:
    (tmp_path / "file.yaml").write_text(text)
    (mini.data / "ALPHA" / "center.yaml").write_text(text)
    for read in (
        lambda: read_yaml(tmp_path / "file.yaml", "a file"),
        lambda: load_center(mini.data / "ALPHA"),
        lambda: parse_value(text),
    ):
        with pytest.raises(DgbenchError, match="nested too deeply") as error:
            read()
        one_line(error)


@pytest.mark.parametrize(
    "labels",
    [
        "Infinity",
        "NaN",
        '{"organ": Infinity}',
        '{"organ": NaN}',
        '{"organ": "1; x"}',
        "[1, 2]",
        "[" * DEEP,
        '{"a":' * DEEP,
    ],
    ids=lambda text: text[:20],
)
def test_labels_of_a_data_set_that_are_none(mini: Mini, tmp_path: Path, labels: str) -> None:
    center = mini.data / "ALPHA"
    (center / "dataset.json").write_text(f'{{"labels": {labels}}}')
    with pytest.raises(DgbenchError, match=r"center ALPHA: dataset\.json needs a mapping 'labels'") as error:
        load_center(center)
    one_line(error)
    with pytest.raises(DgbenchError) as error:
        split_folder(center, tmp_path / "dealt", ["A", "B"])
    one_line(error)
    assert not (tmp_path / "dealt").exists()


@pytest.mark.parametrize("kind", ["pipe", "endless device", "folder"])
def test_a_scan_that_is_no_file_ends_a_run_at_once(
    mini: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    image = mini.data / "ALPHA" / "imagesTr" / "case_00.nii.gz"
    image.unlink()
    match kind:
        case "pipe":
            os.mkfifo(image)
        case "endless device":
            image.symlink_to("/dev/zero")
        case "folder":
            image.mkdir()
    for read in (
        lambda: load_nifti(image, "case ALPHA/case_00: image"),
        lambda: content_hash(image, tmp_path / "cache"),
    ):
        with pytest.raises(DgbenchError, match="is not a regular file") as error:
            read()
        assert str(image) in one_line(error)
    assert "is not a regular file" in mistake(capsys, run_arguments(mini, tmp_path / "runs"))


def archive(**arrays: bytes | np.ndarray) -> bytes:
    """A compressed ``.npz``; an array may be given as the bytes of its file."""
    buffer = io.BytesIO()
    with ZipFile(buffer, "w", ZIP_DEFLATED) as file:
        for name, array in arrays.items():
            content = io.BytesIO()
            if not isinstance(array, bytes):
                np.save(content, array)
            file.writestr(f"{name}.npy", array if isinstance(array, bytes) else content.getvalue())
    return buffer.getvalue()


def claiming(shape: str) -> bytes:
    """An array file of eight bytes whose header says that it has ``shape``."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\0" * 8


def bent(data: bytes) -> bytes:
    """``data`` with the first compressed bytes of its first member changed."""
    start = 30 + len("levels.npy")
    return data[:start] + bytes(byte ^ 0xFF for byte in data[start : start + 8]) + data[start + 8 :]


ARCHIVES: dict[str, bytes] = {
    "an array that is larger than the memory": archive(levels=claiming(str((2**50,)))),
    "an array that is larger than its bytes": archive(levels=claiming(str((2**29,)))),
    "a shape that is a program": archive(levels=claiming("__import__('os').getcwd()")),
    "damaged compression": bent(archive(levels=np.arange(1000))),
    "no archive but an array": claiming("(8,)"),
    "not all arrays": archive(levels=np.zeros((2, 2, 2), np.uint8)),
    "arrays of other kinds": archive(
        **dict.fromkeys(("levels", "lo", "shape", "stage", "roi", "spacing", "place", "image"), np.float64(7))
    ),
    "an encrypted archive": archive(levels=np.zeros(3)).replace(b"\x14\0\0\0\x08\0", b"\x14\0\x01\0\x08\0"),
}


@pytest.mark.parametrize("load", [CaseSlice.load, load_result])
@pytest.mark.parametrize("kind", ARCHIVES)
def test_a_forged_archive_is_one_line(tmp_path: Path, load: Callable[[Path], Any], kind: str) -> None:
    path = tmp_path / "evaluation" / "probabilities" / "RENJI" / "x.npz"
    path.parent.mkdir(parents=True)
    path.write_bytes(ARCHIVES[kind])
    with pytest.raises(DgbenchError, match=r"not (a readable slice|readable probabilities)") as error:
        load(path)
    assert str(path) in one_line(error)


def test_what_unpacks_to_too_much_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "MAX_BYTES", 50_000)
    (tmp_path / "x.npz").write_bytes(archive(levels=np.zeros(60_000, np.uint8)))
    assert (tmp_path / "x.npz").stat().st_size < 1000
    with pytest.raises(ValueError, match=r"unpacks to 60128 bytes, more than 50000"):
        foreign.read_arrays(tmp_path / "x.npz")
    parquet.write_table(pa.table({"case": ["x" * 60_000]}), tmp_path / "cases.parquet")
    with pytest.raises(DgbenchError, match=r"not a readable table \(unpacks to \d+ bytes, more than 50000\)"):
        read_cases(tmp_path)


@pytest.mark.parametrize(
    "notes",
    [
        *(b"{", b"[]", b"[" * DEEP, b'{"index_columns": [7]}', b'{"columns": 3, "index_columns": []}'),
        b'{"index_columns": ["case"], "column_indexes": [], "columns": []}',
        b'{"index_columns": [], "column_indexes": [], "columns": [{"name": "x", "field_name": "case"}]}',
    ],
)
def test_what_a_table_says_about_pandas_is_not_asked(tmp_path: Path, notes: bytes) -> None:
    """It could give columns other names, or take them away after they were looked at."""
    table = pa.Table.from_pandas(fake_cases())
    parquet.write_table(table.replace_schema_metadata({b"pandas": notes}), tmp_path / "cases.parquet")
    read = read_cases(tmp_path)
    assert list(read.columns) == table.column_names
    assert list(read["case"]) == table["case"].to_pylist()


@pytest.mark.parametrize("case", ["../../../x", "/etc/passwd", "RENJI/../../x", "RENJI\\..\\x", "RENJI/x\0"])
def test_no_case_of_a_table_leads_out_of_a_folder(tmp_path: Path, case: str) -> None:
    fake_cases().assign(case=case).to_parquet(tmp_path / "cases.parquet")
    with pytest.raises(DgbenchError, match=r"cases\.parquet: .* names no case") as error:
        read_cases(tmp_path)
    assert repr(case) in one_line(error)


@pytest.mark.parametrize(
    ("output", "code", "said"),
    [
        ("| true", 0, ""),
        ("> /dev/full", 2, "error: output: cannot be written (No space left on device) — make room and call again\n"),
    ],
)
@pytest.mark.parametrize("command", ["methods list", "protocols show phantom"])
def test_output_that_nobody_takes(command: str, output: str, code: int, said: str) -> None:
    program = f"{sys.executable} -c 'from dgbench.cli import main; main()' {command} {output}"
    answer = subprocess.run(["bash", "-o", "pipefail", "-c", program], capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stdout, answer.stderr) == (code, "", said)
