"""The rows of an evaluation as a table takes them: the columns that it needs, each of its own type, and nothing that no evaluation wrote.

They stay Arrow tables until all runs are put together: for thousands of runs, frames would take longer to make than to fill.
"""

from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from dgbench.errors import DgbenchError
from dgbench.leaderboard.policies import RAW_COLUMNS
from dgbench.store.cases import kind_of, read_case_table
from dgbench.store.foreign import to_frame

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

TEXTS = ("case", "center", "role", "stage", "setting", "checkpoint")
FLAGS = ("failed", "empty_reference", "empty_prediction")
COLUMNS = (*RAW_COLUMNS, "role")
NUMBERS = tuple(column for column in COLUMNS if column not in (*TEXTS, *FLAGS))
FRACTIONS = ("threshold", "dsc", "nsd")
"""What is read of the rows, and what it is. Of the numbers those named ``n_…`` are counts, the other ones that are no fractions lengths
and volumes."""
LARGEST = 1e12
"""No count, length in mm or volume in mm³ of a scan comes near; means and variances of larger numbers would overflow."""
MAX_TEXT = 1000
"""Bytes of a name."""


def read_checked(evaluation: Path) -> "pa.Table":
    """The rows in the folder ``evaluation`` with :data:`COLUMNS`; text is coded as a dictionary, numbers are float64.

    Raises:
        DgbenchError: they cannot be read, or hold what no evaluation wrote.
    """
    stored = read_case_table(evaluation, COLUMNS, coded=TEXTS)
    if foreign := _foreign_column(stored.schema):
        raise DgbenchError(f"evaluation is damaged: {foreign}")
    cases = _as_typed(stored, _schema(coded=True))
    if misfit := _misfit(cases):
        raise DgbenchError(f"evaluation is damaged: {misfit}")
    return cases


def as_frame(cases: "pa.Table", *, coded: bool = False) -> "pd.DataFrame":
    """Rows of :func:`read_checked`, of one run or of several together, for pandas, with text as it is or as categories."""
    return to_frame(cases.unify_dictionaries() if coded else _as_typed(cases, _schema(coded=False)))


def _as_typed(table: "pa.Table", schema: "pa.Schema") -> "pa.Table":
    """The table in the types of ``schema``; casting what has its type already would take most of the time of a small one."""
    import pyarrow as pa

    columns = [
        column if column.type == field.type else column.cast(field.type, safe=False)
        for column, field in zip(table.columns, schema, strict=True)
    ]
    return pa.Table.from_arrays(columns, schema=schema)


@cache
def _schema(*, coded: bool) -> "pa.Schema":
    """Numbers, counts too, are undefined for a failed case."""
    import pyarrow as pa

    text = pa.dictionary(pa.int32(), pa.string()) if coded else pa.string()
    types = {**dict.fromkeys(TEXTS, text), **dict.fromkeys(FLAGS, pa.bool_())}
    return pa.schema([(column, types.get(column, pa.float64())) for column in COLUMNS])


@lru_cache(maxsize=16)
def _foreign_column(stored: "pa.Schema") -> str | None:
    """A column that is there twice, or holds something else than it should; one without any value fits everywhere. All runs of one
    version of dgbench have the same schema."""
    for column in COLUMNS:
        if stored.names.count(column) > 1:
            return f"it holds {column} more than once"
        wanted = "text" if column in TEXTS else "true or false" if column in FLAGS else "numbers"
        kind = kind_of(stored.field(column).type)
        if kind not in (wanted, "null"):
            return f"{column} holds {kind}, expected {wanted}"
    return None


def _misfit(cases: "pa.Table") -> str | None:
    """A value that is no measurement, or the lack of one that says which case this is. Undefined measurements are a policy's business."""
    import numpy as np
    from pyarrow import compute

    for column in TEXTS:
        if holes := cases[column].null_count:
            return f"{holes} rows without {column}"
        for chunk in cases[column].chunks:
            names = chunk.dictionary
            if names.nbytes > MAX_TEXT and compute.max(compute.binary_length(names)).as_py() > MAX_TEXT:
                return f"{column} holds a text of more than {MAX_TEXT} bytes"
    if holes := cases["failed"].null_count:
        return f"{holes} rows without failed"
    for batch in cases.select(NUMBERS).combine_chunks().to_batches():
        values = np.asarray(batch.to_tensor(null_to_nan=True, row_major=False))
        if holes := int(np.isnan(values[:, NUMBERS.index("threshold")]).sum()):
            return f"{holes} rows without threshold"
        counts = np.array([column.startswith("n_") for column in NUMBERS])
        highest = np.array([1 if column in FRACTIONS else LARGEST for column in NUMBERS])
        with np.errstate(invalid="ignore"):  # infinity has no remainder
            misfits = (values < 0) | (values > highest)
            misfits[:, counts] |= values[:, counts] % 1 > 0
        if misfits.any():
            place = int(misfits.any(axis=0).argmax())
            what = "a count" if counts[place] else f"from 0 to {highest[place]:g}"
            return f"{NUMBERS[place]} {values[misfits[:, place], place][0]:g} is not {what}"
    return None
