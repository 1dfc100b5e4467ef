"""Checkpoints: tensors as safetensors, everything else as JSON, nothing pickled, every byte under a checksum.

A checkpoint ``last`` is a series of pairs ``last-000007.safetensors`` + ``last-000007.json``. The JSON is written second and holds the
sha256 of
the tensors file and of its own content: a pair exists once its JSON does, whenever the process is killed. The newest two pairs are kept,
so that a damaged one has a predecessor.
"""

import hashlib
import re
import reprlib
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_save
from torch import Tensor

from dgbench.atomic import TEMPORARY_PREFIX, read_json, write_bytes, write_json
from dgbench.errors import DgbenchError
from dgbench.store.keys import key_of

FORMAT = "dgbench-checkpoint-1"
KEPT = 2
"""Pairs kept of one checkpoint."""

DTYPES = frozenset(
    {
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.float8_e4m3fnuz,
        torch.float8_e5m2fnuz,
        torch.complex64,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint64,
        torch.uint32,
        torch.uint16,
        torch.uint8,
        torch.bool,
    }
)
"""What a checkpoint can hold: the types that safetensors writes and reads back."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: tensors on the CPU, the JSON value that came with them, the tensors file they came from, and, if that is not
    the newest one, ``problem``: one line on why the newer was passed over."""

    tensors: dict[str, Tensor]
    meta: Any
    file: Path
    problem: str | None

    @property
    def key(self) -> str:
        """The key of the training that it says to be of, "unknown" where it names none."""
        key = self.meta.get("key") if isinstance(self.meta, Mapping) else None
        return key if isinstance(key, str) else "unknown"


def save_checkpoint(stem: Path, tensors: Mapping[str, Tensor], meta: Any) -> Path:
    """Store a new pair of the checkpoint ``stem`` (``folder/last``) and remove all but the newest two.

    Equal content gives equal bytes. Tensors may be on any device, non-contiguous, or share memory; each is stored on its own.

    Args:
        stem: folder and name of the checkpoint.
        tensors: named tensors of a type in :data:`DTYPES`.
        meta: any JSON value (no NaN or infinity; :func:`flatten_state` makes one of any state).

    Returns:
        The tensors file.

    Raises:
        DgbenchError: a tensor or ``meta`` that cannot be stored, or an unwritable folder or full disk; the earlier pairs are then as
        they were.
    """
    data = safetensors_save({name: _storable(name, tensor) for name, tensor in tensors.items()})
    numbers = _numbers(stem)
    number = max(numbers, default=0) + 1
    file = _path(stem, number, "safetensors")
    sidecar = {"format": FORMAT, "file": file.name, "sha256": hashlib.sha256(data).hexdigest(), "meta": meta}
    sidecar["check"] = _check(sidecar)
    write_bytes(file, data)
    write_json(_path(stem, number, "json"), sidecar)
    _prune(stem, numbers)
    return file


def load_checkpoint(stem: Path) -> Checkpoint:
    """The newest intact pair of the checkpoint ``stem``; :attr:`Checkpoint.problem` tells if a newer one is damaged.

    Raises:
        DgbenchError: there is no checkpoint, or none that is intact; says what is wrong with each.
    """
    numbers = _committed(stem)
    if not numbers:
        raise DgbenchError(f"{stem}: no checkpoint of this name")
    problems: list[str] = []
    for number in reversed(numbers):
        try:
            tensors, meta = _load_pair(stem, number)
        except DgbenchError as error:
            problems.append(str(error))
        else:
            return Checkpoint(tensors, meta, _path(stem, number, "safetensors"), "; ".join(problems) or None)
    raise DgbenchError(f"{'; '.join(problems)} — no intact checkpoint is left, remove the folder and run again")


def has_checkpoint(stem: Path) -> bool:
    """Whether there is a checkpoint ``stem`` to load, intact or not."""
    return bool(_committed(stem))


def flatten_state(state: Any) -> tuple[dict[str, Tensor], Any]:
    """Split nested dicts, lists and tuples (``optimizer.state_dict()``) into named tensors and a strict JSON value, for
    :func:`save_checkpoint`.

    :func:`unflatten_state` gives back equal values of equal types: tuples, integer keys, the order of dicts, exact floats
    (infinity and NaN among them), integers of any size. An OrderedDict comes back as a dict, a parameter as a plain tensor. A tensor is
    named by its path, ``a/0/b``.

    Raises:
        DgbenchError: anything else (objects, NumPy scalars, sets), named by its place: state must not change its type by being stored.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _encode(state, (), tensors)


def unflatten_state(tensors: Mapping[str, Tensor], tree: Any) -> Any:
    """The inverse of :func:`flatten_state`.

    Raises:
        DgbenchError: ``tree`` was not made by it, or names a tensor that is not there.
    """
    try:
        return _decode(tensors, tree)
    except (
        TypeError,
        ValueError,
        RecursionError,
    ) as error:  # a key that is none, a pair that is none, text that is no number
        raise _not_a_state(tree) from error


def _decode(tensors: Mapping[str, Tensor], tree: Any) -> Any:
    match tree:
        case None | bool() | int() | float() | str():
            return tree
        case list():
            return [_decode(tensors, item) for item in tree]
        case {"tensor": str(name)} if name in tensors:
            return tensors[name]
        case {"float": str(text)}:
            return float(text)
        case {"tuple": list(items)}:
            return tuple(_decode(tensors, item) for item in items)
        case {"dict": list(items)}:
            return {_decode(tensors, key): _decode(tensors, value) for key, value in items}
    raise _not_a_state(tree)


def _not_a_state(tree: Any) -> DgbenchError:
    return DgbenchError(f"not a stored state: {reprlib.repr(tree)[:80]}")


def _encode(value: Any, path: tuple[str, ...], tensors: dict[str, Tensor]) -> Any:
    """JSON of ``value``: scalars and lists as they are, everything else as an object with one tag."""
    kind = type(value)  # exactly: a subclass would come back as something else
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return value if isfinite(value) else {"float": repr(value)}
    if isinstance(value, Tensor):
        name = "/".join(path) or "value"
        while name in tensors or name == "__metadata__":  # the name safetensors keeps for itself
            name += "'"
        tensors[name] = value.detach()
        return {"tensor": name}
    if kind in (list, tuple):
        items = [_encode(item, (*path, str(i)), tensors) for i, item in enumerate(value)]
        return items if kind is list else {"tuple": items}
    if kind in (dict, OrderedDict):
        for key in value:
            if type(key) not in (bool, int, str):
                raise DgbenchError(f"state {'/'.join(path) or 'value'}: key {key!r} is neither text nor an integer")
        return {"dict": [[key, _encode(item, (*path, str(key)), tensors)] for key, item in value.items()]}
    raise DgbenchError(
        f"state {'/'.join(path) or 'value'}: a {kind.__module__}.{kind.__qualname__} cannot be stored"
        " — use tensors, numbers, text, None, lists, tuples and dicts"
    )


def _storable(name: str, tensor: Tensor) -> Tensor:
    """A dense copy on the CPU; a copy, because safetensors refuses tensors that share memory."""
    if tensor.dtype not in DTYPES or tensor.layout is not torch.strided or tensor.is_meta:
        raise DgbenchError(
            f"tensor {name!r} ({tensor.dtype}, {tensor.layout}, {tensor.device}) cannot be stored in a checkpoint"
        )
    return tensor.detach().resolve_conj().resolve_neg().cpu().clone(memory_format=torch.contiguous_format)


def _load_pair(stem: Path, number: int) -> tuple[dict[str, Tensor], Any]:
    path = _path(stem, number, "json")
    sidecar = read_json(path)
    if sidecar.get("format") != FORMAT or sidecar.get("check") != _check(sidecar):
        raise DgbenchError(f"{path}: the checksum does not match — damaged or foreign")
    file = _path(stem, number, "safetensors")
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DgbenchError(f"{file}: cannot be read ({error.strerror or error})") from error
    if hashlib.sha256(data).hexdigest() != sidecar["sha256"]:
        raise DgbenchError(f"{file}: the checksum does not match ({len(data)} bytes) — damaged, cut short or foreign")
    try:
        return safetensors_load(data), sidecar["meta"]
    except (SafetensorError, KeyError) as error:  # a KeyError comes of a type that torch does not have
        raise DgbenchError(f"{file}: not a safetensors file ({error})") from error


def _check(sidecar: Mapping[str, Any]) -> str:
    """sha256 over everything in the JSON but itself."""
    return key_of({name: value for name, value in sidecar.items() if name != "check"})


def _path(stem: Path, number: int, suffix: str) -> Path:
    return stem.with_name(f"{stem.name}-{number:06d}.{suffix}")


def _numbers(stem: Path, suffixes: str = "json|safetensors") -> list[int]:
    """Numbers of the files of this checkpoint, ascending."""
    if not stem.parent.is_dir():
        return []
    pattern = re.compile(rf"{re.escape(stem.name)}-(\d{{6,}})\.(?:{suffixes})")
    return sorted({int(match[1]) for path in stem.parent.iterdir() if (match := pattern.fullmatch(path.name))})


def _committed(stem: Path) -> list[int]:
    return _numbers(stem, "json")


def _prune(stem: Path, numbers: list[int]) -> None:
    """Remove old pairs, tensors without JSON and what killed writers left. The JSON goes first: without it a pair does not exist."""
    kept = _committed(stem)[-KEPT:]
    old = [
        _path(stem, number, suffix) for number in numbers if number not in kept for suffix in ("json", "safetensors")
    ]
    for path in (*old, *stem.parent.glob(f"{TEMPORARY_PREFIX}*-{stem.name}-*")):
        with suppress(OSError):  # the new pair is safe; the next save tries again
            path.unlink(missing_ok=True)
