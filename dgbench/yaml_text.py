"""YAML as it comes from people, in files and in ``--set`` texts: whatever is wrong with it is one line."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dgbench.errors import DgbenchError, suggest

SHOWN = 200
"""Characters of a value that a message repeats."""


def read_yaml(path: Path, what: str) -> Any:
    """What the YAML file ``path`` holds. Raises DgbenchError, starting with ``what``, when it cannot be read or is not YAML in UTF-8."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DgbenchError(f"{what}: {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DgbenchError(f"{what}: {path} is not text in UTF-8 ({error.reason} at byte {error.start})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DgbenchError(f"{what}: not valid YAML: {_problem(error)}") from None


def merged(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` on top of ``base``: mappings in both are merged key by key, an empty one empties, and all else is replaced."""
    both = {
        key: merged(base[key], value)
        for key, value in values.items()
        if value and isinstance(value, Mapping) and isinstance(base.get(key), Mapping)
    }
    return {**base, **values, **both}


def parse_value(text: str) -> Any:
    """A command-line value read as YAML (``1e-3`` too, which YAML 1.1 alone would keep as text)."""
    try:
        return float(text) if re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", text) else yaml.safe_load(text)
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
    ) as error:  # a ValueError comes of a date that is none, such as 2026-02-31
        raise DgbenchError(f"cannot read the value {_short(text)!r}: {_problem(error)}") from None


def _problem(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def assign(tree: dict[str, Any], path: str, text: str) -> None:
    """Put ``text``, read as YAML, at the dotted ``path`` below a preset. Raises DgbenchError for a key that is not there."""
    *parents, leaf = path.split(".")
    node: Any = tree
    for depth, part in enumerate(parents):
        if not isinstance(node, dict) or part not in node:
            known = node if isinstance(node, dict) else ()
            raise DgbenchError(
                f"--set preset.{path}: unknown key {'.'.join(parents[: depth + 1])!r}{suggest(part, known)}"
            )
        node = node[part]
    if not isinstance(node, dict) or leaf not in node:
        raise DgbenchError(
            f"--set preset.{path}: unknown key {leaf!r}{suggest(leaf, node if isinstance(node, dict) else ())}"
        )
    node[leaf] = parse_value(text)
