"""Forged files of every format that is read: whatever they claim is one line, soon, and within the memory that a true one takes."""

import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_calls import mistake, run_arguments
from training_fixtures import Mini, quiet

from dgbench.atomic import read_json, write_json
from dgbench.data.case import load_center
from dgbench.data.fingerprint import content_hash
from dgbench.data.importing import split_folder
from dgbench.data.nifti import load_nifti
from dgbench.errors import DgbenchError
from dgbench.evaluation.job import load_trained
from dgbench.store import checkpoint_file
from dgbench.store.checkpoint_file import load_checkpoint, save_checkpoint, unflatten_state
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
