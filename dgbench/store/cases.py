"""The rows of an evaluation: what it measured of every case, in ``cases.parquet``."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dgbench.errors import DgbenchError
from dgbench.store.foreign import read_arrow, to_frame

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

CASE_COLUMNS = ("case", "center", "role", "stage", "setting", "checkpoint", "threshold", "failed", "reason")
"""Columns that identify a row of ``cases.parquet``; the metrics follow."""
OFFICIAL_SETTING = "F-Seg"
"""The setting that is ranked: the last stage, in the ROI that the stages before it predicted (protocol.md §2)."""

MAX_KIND = 60
"""Characters that are shown of a foreign type: a nested one can name thousands of fields."""

_LEAVING = r"^/|(^|/)\.\.(/|$)|\\|\x00"


def read_cases(folder: Path) -> "pd.DataFrame":
    """The raw rows of the evaluation in ``folder``, one per (case, stage, setting, checkpoint, threshold).

    Raises:
        DgbenchError: nothing has been evaluated there, or the table is damaged, lacks one of :data:`CASE_COLUMNS` or names a case that
            leads out of a folder.
    """
    table, path = read_case_table(folder), folder / "cases.parquet"
    missing = [name for name in CASE_COLUMNS if table.column_names.count(name) != 1]
    if missing:
        raise DgbenchError(
            f"{path}: columns {', '.join(missing)} are missing or there twice — damaged or foreign, evaluate again"
        )
    if (kind := kind_of(table["case"].type)) not in ("text", "null"):  # pandas would make text of some others
        raise DgbenchError(f"{path}: case holds {kind}, expected text — foreign, remove it")
    try:
        return to_frame(table)
    except ValueError as error:
        raise _unreadable(path, error) from error


def read_case_table(folder: Path, columns: Sequence[str] | None = None, *, coded: Sequence[str] = ()) -> "pa.Table":
    """All or some ``columns`` of the rows of :func:`read_cases`; text in those that are ``coded`` as a dictionary.

    Raises:
        DgbenchError: as :func:`read_cases`, where it lacks one of ``columns``.
    """
    path = folder / "cases.parquet"
    if not path.exists():
        raise DgbenchError(f"{path}: no such file — the run has not been evaluated")
    try:
        table = read_arrow(path, columns, coded)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    leaving = _leaving(table["case"]) if table.column_names.count("case") == 1 else None
    if leaving is not None:  # slices and pages are files named by the case
        raise DgbenchError(f"{path}: {leaving!r} names no case — foreign, remove it")
    return table


def leads_out(case: str) -> bool:
    """Whether a name leads out of the folder that it would be a file in."""
    return re.search(_LEAVING, case) is not None


def _leaving(cases: "pa.ChunkedArray") -> str | None:
    """The first name that leads out of a folder; what holds no text names nothing."""
    from pyarrow import compute, types

    if kind_of(cases.type) != "text":
        return None
    for chunk in cases.chunks:
        names = chunk.dictionary if types.is_dictionary(chunk.type) else chunk
        found = names.filter(compute.match_substring_regex(names, _LEAVING))
        if len(found):
            name: str = found[0].as_py()
            return name
    return None


def kind_of(held: "pa.DataType") -> str:
    """What a column of this type holds: ``text``, ``numbers``, ``true or false``, or what Arrow calls it (``null``: nothing)."""
    from pyarrow import types

    if types.is_dictionary(held):
        held = held.value_type
    if types.is_string(held) or types.is_large_string(held):
        return "text"
    if types.is_integer(held) or types.is_floating(held):
        return "numbers"
    return "true or false" if types.is_boolean(held) else str(held)[:MAX_KIND]


def _unreadable(path: Path, error: Exception) -> DgbenchError:
    one_line = " ".join(str(error).split())
    return DgbenchError(f"{path}: not a readable table ({one_line}) — remove it and evaluate again")
