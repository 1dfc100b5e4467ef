"""Checkpoints: exact round trips, damage is noticed, a killed writer loses nothing."""

import errno
import hashlib
import json
import math
import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dgbench.errors import DgbenchError
from dgbench.store import checkpoint_file
from dgbench.store.checkpoint_file import (
    DTYPES,
    flatten_state,
    has_checkpoint,
    load_checkpoint,
    save_checkpoint,
    unflatten_state,
)


def bits(tensor: Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().flatten().view(torch.uint8).tolist()) if tensor.numel() else b""


def assert_same(a: Any, b: Any) -> None:
    """Equal values of equal types, floats and tensors to the bit."""
    if isinstance(a, Tensor):
        assert type(b) is Tensor
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert bits(a) == bits(b)
    elif type(a) is float:
        assert type(b) is float
        assert struct.pack("<d", a) == struct.pack("<d", b)
    elif isinstance(a, dict):
        assert type(b) is dict
        assert list(a) == list(b)
        assert [type(key) for key in a] == [type(key) for key in b]
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert type(b) is type(a)
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert type(a) is type(b)
        assert a == b


def round_trip(folder: Path, state: Any) -> Any:
    save_checkpoint(folder / "last", *flatten_state(state))
    loaded = load_checkpoint(folder / "last")
    assert loaded.problem is None
    return unflatten_state(loaded.tensors, loaded.meta)


# --- state ------------------------------------------------------------------------------------------------------------


def test_plain_values_come_back_exactly(tmp_path: Path) -> None:
    state = {
        "z first": 1,
        "a": [1, (2, 3), [], (), {}, None, True, False, "é\n\ud800", ""],
        "floats": [0.1 + 0.2, -0.0, 5e-324, 1.7976931348623157e308, 1.0, math.inf, -math.inf, math.nan],
        "ints": [2**200, -(2**64), 0],
        0: {1: "one", "1": "text", -1: "negative"},
        "tags": {"tensor": "not one", "dict": [1], "float": "nan", "tuple": []},
    }
    assert_same(state, round_trip(tmp_path, state))


@pytest.mark.parametrize("dtype", sorted(DTYPES, key=str), ids=str)
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3, 4)], ids=str)
def test_every_dtype_comes_back_to_the_bit(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    size = math.prod(shape) * torch.empty((), dtype=dtype).element_size()
    raw = np.random.default_rng(0).integers(
        0, 2 if dtype == torch.bool else 256, size, dtype=np.uint8
    )  # NaNs among them
    tensor = torch.from_numpy(raw).view(dtype).reshape(shape) if size else torch.empty(shape, dtype=dtype)
    assert_same(tensor, round_trip(tmp_path, tensor))


def test_views_shared_memory_and_parameters_come_back(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(2, 3, 4)
    state = {
        "transposed": base.permute(2, 0, 1),
        "slice": base[:, ::2],
        "same": [base, base, base.view(-1)],
        "expanded": torch.tensor([1.0, 2.0]).expand(3, 2),
        "channels last": torch.randn(1, 2, 3, 4, 5).to(memory_format=torch.channels_last_3d),
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "parameter": nn.Parameter(torch.ones(2)),
        "__metadata__": torch.ones(1),
        "a": {"b": torch.zeros(1), 1: torch.ones(1), "1": torch.ones(2)},
        "a/b": torch.full((1,), 7.0),
    }
    tensors, tree = flatten_state(state)
    assert len(tensors) == 14
    assert not any(tensor.requires_grad for tensor in tensors.values())
    expected = {**state, "parameter": torch.ones(2), "conjugate": torch.tensor([1 - 2j])}
    loaded = round_trip(tmp_path, state)
    assert_same(expected, loaded)
    assert_same({**state, "parameter": torch.ones(2)}["a"], unflatten_state(tensors, tree)["a"])
    loaded["same"][0].zero_()  # loaded tensors are writable and independent
    assert loaded["same"][1][0, 0, 1] == 1


@pytest.mark.parametrize("name", ["Adam", "SGD"])
def test_training_continues_exactly_from_a_stored_state(tmp_path: Path, name: str) -> None:
    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2), nn.Conv3d(2, 1, 1))
        options = {"momentum": 0.9} if name == "SGD" else {"amsgrad": True}
        return net, getattr(torch.optim, name)(net.parameters(), lr=0.01, **options)

    def train(net: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> None:
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.randn(2, 1, 5, 5, 5, generator=generator)).square().mean().backward()
            optimizer.step()

    net, optimizer = build()
    generator = torch.Generator().manual_seed(5)
    train(net, optimizer, generator)
    state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "generator": generator.get_state()}
    assert isinstance(state["net"], OrderedDict)
    stored = round_trip(tmp_path, state)
    train(net, optimizer, generator)

    other, other_optimizer = build()
    other.load_state_dict(stored["net"])
    other_optimizer.load_state_dict(stored["optimizer"])
    generator.set_state(stored["generator"])
    train(other, other_optimizer, generator)
    for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True):
        assert bits(a) == bits(b)
    assert_same(flatten_state(optimizer.state_dict())[1], flatten_state(other_optimizer.state_dict())[1])


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": [1, {2}]}, "state a/1: a builtins.set cannot be stored"),
        ({"a": np.float64(1)}, "state a: a numpy.float64 cannot be stored"),
        ({"size": torch.Size([1])}, "state size: a torch.Size cannot be stored"),
        ({"d": torch.float32}, "state d: a torch.dtype cannot be stored"),
        ({"d": {(1, 2): 3}}, r"state d: key \(1, 2\) is neither text nor an integer"),
        (object(), "state value: a builtins.object"),
    ],
)
def test_what_would_change_its_type_is_refused(state: Any, message: str) -> None:
    with pytest.raises(DgbenchError, match=message):
        flatten_state(state)


def test_what_is_not_a_stored_state_is_refused() -> None:
    for tree in ({"tensor": "gone"}, {"pickle": "x"}, {"tuple": {"a": 1}}):
        with pytest.raises(DgbenchError, match="not a stored state"):
            unflatten_state({}, tree)


@pytest.mark.parametrize(
    "tensor",
    [torch.ones(2, 2).to_sparse(), torch.empty(2, device="meta"), torch.ones(2, dtype=torch.complex128)],
    ids=["sparse", "meta", "complex128"],
)
def test_tensors_that_cannot_be_stored_are_named(tmp_path: Path, tensor: Tensor) -> None:
    with pytest.raises(DgbenchError, match=r"tensor 'net/weight' .* cannot be stored"):
        save_checkpoint(tmp_path / "last", {"net/weight": tensor}, {})
    assert list(tmp_path.iterdir()) == []


def test_meta_must_be_strict_json(tmp_path: Path) -> None:
    with pytest.raises(DgbenchError, match=r"meta\.loss: nan"):
        save_checkpoint(tmp_path / "last", {}, {"loss": math.nan})
    assert list(tmp_path.iterdir()) == []


# --- files ------------------------------------------------------------------------------------------------------------


def save_steps(folder: Path, *steps: int) -> None:
    for step in steps:
        save_checkpoint(folder / "last", {"w": torch.full((100,), float(step))}, {"step": step})


def test_the_newest_two_pairs_are_kept_and_other_files_left_alone(tmp_path: Path) -> None:
    stem = tmp_path / "last"
    assert not has_checkpoint(stem)
    assert not has_checkpoint(tmp_path / "none" / "last")
    save_checkpoint(tmp_path / "last-best", {"w": torch.ones(1)}, None)
    (tmp_path / "last.txt").write_text("mine")
    (tmp_path / ".tmp-0123-last-000001.safetensors").write_text("left by a killed process")
    (tmp_path / "last-000002.safetensors").write_text("a tensors file without its JSON")
    save_steps(tmp_path, 1, 2, 3)
    assert has_checkpoint(stem)
    assert load_checkpoint(stem).meta == {"step": 3}
    assert load_checkpoint(tmp_path / "last-best").meta is None
    pairs = [f"last-{number:06d}.{suffix}" for number in (4, 5) for suffix in ("json", "safetensors")]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *pairs,
        "last-best-000001.json",
        "last-best-000001.safetensors",
        "last.txt",
    ]


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    files = []
    for folder, names in ((tmp_path / "a", "wvu"), (tmp_path / "b", "uvw")):
        state = {name: torch.full((3,), float(ord(name))) for name in names}
        files.append(save_checkpoint(folder / "last", state, {"step": 1}))
    assert files[0].read_bytes() == files[1].read_bytes()
    assert files[0].with_suffix(".json").read_bytes() == files[1].with_suffix(".json").read_bytes()


def flip(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


@pytest.mark.parametrize("suffix", ["safetensors", "json"])
@pytest.mark.parametrize("damage", ["flip first", "flip middle", "flip last", "truncate", "empty", "foreign", "remove"])
def test_damage_is_noticed_and_the_previous_pair_used(tmp_path: Path, suffix: str, damage: str) -> None:
    save_steps(tmp_path, 1, 2)
    path = tmp_path / f"last-000002.{suffix}"
    data = path.read_bytes()
    match damage:
        case "flip first":
            path.write_bytes(flip(data, 0))
        case "flip middle":
            path.write_bytes(flip(data, len(data) // 2))
        case "flip last":
            path.write_bytes(flip(data, len(data) - 2))
        case "truncate":
            path.write_bytes(data[:-8])
        case "empty":
            path.write_bytes(b"")
        case "foreign":
            path.write_bytes(
                (tmp_path / f"last-000001.{suffix}").read_bytes() if suffix == "safetensors" else b'{"step": 2}'
            )
        case "remove":
            path.unlink()
    loaded = load_checkpoint(tmp_path / "last")
    assert loaded.meta == {"step": 1}
    assert loaded.tensors["w"][0] == 1
    assert loaded.file.name == "last-000001.safetensors"
    if (suffix, damage) == ("json", "remove"):
        assert loaded.problem is None  # a pair without its JSON was never finished
        return
    assert loaded.problem is not None
    assert path.name in loaded.problem
    assert "\n" not in loaded.problem
    for json_path in tmp_path.glob("last-000001.*"):
        json_path.write_bytes(b"")
    with pytest.raises(DgbenchError, match="no intact checkpoint is left"):
        load_checkpoint(tmp_path / "last")


def test_every_flipped_bit_of_the_json_is_noticed(tmp_path: Path) -> None:
    """Also those that leave valid JSON behind, such as another digit; white space does not count."""
    save_checkpoint(tmp_path / "last", {"w": torch.ones(1)}, {"step": 1234, "lr": 0.01, "name": "erm"})
    path = tmp_path / "last-000001.json"
    data = path.read_bytes()
    for position in range(len(data)):
        if data[position : position + 1].isspace():
            continue
        path.write_bytes(flip(data, position))
        with pytest.raises(DgbenchError):
            load_checkpoint(tmp_path / "last")


def test_a_foreign_file_with_a_matching_checksum_is_refused(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    path, file = tmp_path / "last-000001.json", tmp_path / "last-000001.safetensors"
    file.write_bytes(b"PK\x03\x04 pickled")
    sidecar = json.loads(path.read_text())
    sidecar["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    sidecar["check"] = checkpoint_file._check(sidecar)
    path.write_text(json.dumps(sidecar))
    with pytest.raises(DgbenchError, match="not a safetensors file"):
        load_checkpoint(tmp_path / "last")


def test_no_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DgbenchError, match="no checkpoint of this name"):
        load_checkpoint(tmp_path / "last")


def test_a_crash_at_any_point_keeps_the_previous_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The n-th flush or rename of a save fails, for every n; what is loaded is the previous or the new state, never neither."""
    calls, seen = 0, []
    functions = {"fsync": os.fsync, "replace": os.replace}
    for point in range(1, 20):
        folder = tmp_path / str(point)
        save_steps(folder, 1, 2)
        calls = 0

        def counted(name: str, *arguments: Any, point: int = point) -> Any:
            nonlocal calls
            calls += 1
            if calls == point:
                raise OSError(errno.ENOSPC, "No space left on device")
            return functions[name](*arguments)

        with monkeypatch.context() as patch:
            for name in functions:
                patch.setattr(os, name, lambda *arguments, name=name: counted(name, *arguments))
            try:
                save_steps(folder, 3)
            except DgbenchError as error:
                assert "No space left on device" in str(error)  # noqa: PT017
        loaded = load_checkpoint(folder / "last")
        assert loaded.problem is None
        assert torch.equal(loaded.tensors["w"], torch.full((100,), float(loaded.meta["step"])))
        seen.append(loaded.meta["step"])
        if calls < point:
            break
    assert seen == [2, 2, 2, 2, 2, 3, 3]  # the second rename commits
    save_steps(tmp_path / "1", 4)
    assert load_checkpoint(tmp_path / "1" / "last").meta == {"step": 4}


WRITER = """
import sys, itertools, pathlib, torch
from dgbench.store.checkpoint_file import save_checkpoint
for step in itertools.count(int(sys.argv[2])):
    save_checkpoint(pathlib.Path(sys.argv[1]), {"w": torch.full((300_000,), float(step))}, {"step": step})
    print(step, flush=True)
"""


def kill_writers(stem: Path, kills: int) -> None:
    source, last = random.Random(0), 0
    for _ in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(stem), str(last + 1)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(source.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        reported = process.communicate()[0].split()
        loaded = load_checkpoint(stem)
        assert loaded.problem is None
        assert bool((loaded.tensors["w"] == loaded.meta["step"]).all())
        assert loaded.meta["step"] >= max([last + 1, *map(int, reported)])
        last = loaded.meta["step"]


def test_a_killed_writer_leaves_a_checkpoint(tmp_path: Path) -> None:
    kill_writers(tmp_path / "last", 1)


@pytest.mark.slow
def test_twelve_killed_writers_leave_a_checkpoint(tmp_path: Path) -> None:
    kill_writers(tmp_path / "last", 12)
