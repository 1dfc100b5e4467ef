"""Keys: one hash per set of values that can change a number, and the difference between two sets in words."""

import hashlib
import json
from collections.abc import Mapping
from math import isfinite
from typing import Any

from dgbench.errors import DgbenchError

_ABSENT = object()


def canonical_json(value: Any) -> str:
    """The one JSON text of ``value``: keys sorted, no spaces, ASCII only, floats in their shortest exact form; tuples count as lists.

    1 and 1.0 are different values, as are 0.0 and -0.0; True is not 1.

    Raises:
        DgbenchError: NaN or infinity, a mapping key that is not text, or a type JSON does not have; names where it is.
    """
    _check(value, "value")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain_mapping)


def key_of(values: Mapping[str, Any]) -> str:
    """sha256 of :func:`canonical_json` as 64 hexadecimal digits; equal on every platform and Python version."""
    return hashlib.sha256(canonical_json(values).encode()).hexdigest()


def diff(a: Any, b: Any) -> list[str]:
    """Where two JSON-able values differ, one line per place in the form ``method.config.lr: 0.01 → 0.001``.

    Mappings and lists of equal length are entered, anything else is compared as a whole. The list is empty if and only if the
    canonical texts, and so the keys, are equal.
    """
    return list(_differences(a, b, ""))


def _differences(a: Any, b: Any, path: str) -> list[str]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        prefix = f"{path}." if path else ""
        names = sorted({*a, *b})
        return [
            line
            for name in names
            for line in _differences(a.get(name, _ABSENT), b.get(name, _ABSENT), f"{prefix}{name}")
        ]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [line for i, (x, y) in enumerate(zip(a, b, strict=True)) for line in _differences(x, y, f"{path}[{i}]")]
    left, right = _text(a), _text(b)
    return [] if left == right else [f"{path or 'value'}: {left} → {right}"]


def _text(value: Any) -> str:
    return "absent" if value is _ABSENT else canonical_json(value)


def _check(value: Any, path: str) -> None:
    match value:
        case None | bool() | int() | str():
            pass
        case float():
            if not isfinite(value):
                raise DgbenchError(f"{path}: {value} has no place in a key — use a number or null")
        case Mapping():
            for name, item in value.items():
                if not isinstance(name, str):
                    raise DgbenchError(f"{path}: mapping key {name!r} is {type(name).__name__}, only text can be a key")
                _check(item, f"{path}.{name}")
        case list() | tuple():
            for i, item in enumerate(value):
                _check(item, f"{path}[{i}]")
        case _:
            raise DgbenchError(
                f"{path}: {type(value).__name__} has no JSON form — convert it to text, a number or a list"
            )


def _plain_mapping(value: Any) -> Any:
    """json.dumps writes dict only; :func:`_check` lets any other Mapping through."""
    return dict(value)
