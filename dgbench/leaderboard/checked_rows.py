"""The rows of an evaluation as a table takes them: the columns that it needs, each of its own type, and nothing that no evaluation wrote.

They stay Arrow tables until all runs are put together: for thousands of runs, frames would take longer to make than to fill.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dgbench.errors import DgbenchError
from dgbench.leaderboard.policies import RAW_COLUMNS
from dgbench.store.folder import read_case_table

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = (*RAW_COLUMNS, "role")
TEXTS = ("case", "center", "role", "stage", "setting", "checkpoint")
FLAGS = ("failed", "empty_reference", "empty_prediction")
FRACTIONS = ("threshold", "dsc", "nsd")
"""What is read of the rows, and what it is: those named ``n_…`` counts, all others lengths and volumes."""


def read_checked(evaluation: Path) -> "pa.Table":
    """The rows in the folder ``evaluation`` with :data:`COLUMNS`, in the same types for every run.

    Raises:
        DgbenchError: they cannot be read, or hold what no evaluation wrote.
    """
    import pyarrow as pa

    stored = read_case_table(evaluation)
    lacking = sorted(set(COLUMNS) - set(stored.column_names))
    if lacking:
        raise DgbenchError(f"evaluation lacks the columns {', '.join(lacking)}")
    if foreign := _foreign_column(stored):
        raise DgbenchError(f"evaluation is damaged: {foreign}")
    # numbers, counts too, are undefined for a failed case
    types = {
        **dict.fromkeys(COLUMNS, pa.float64()),
        **dict.fromkeys(TEXTS, pa.string()),
        **dict.fromkeys(FLAGS, pa.bool_()),
    }
    cases = stored.select(list(COLUMNS)).cast(pa.schema(types.items()), safe=False)
    if misfit := _misfit(cases):
        raise DgbenchError(f"evaluation is damaged: {misfit}")
    return cases


def _foreign_column(stored: "pa.Table") -> str | None:
    """A column that holds something else than it should; one without any value fits everywhere."""
    names = stored.column_names
    for column in COLUMNS:
        if names.count(column) > 1:
            return f"it holds {column} more than once"
        wanted = "text" if column in TEXTS else "true or false" if column in FLAGS else "numbers"
        kind = _kind(stored.schema.field(column).type)
        if kind not in (wanted, "null"):
            return f"{column} holds {kind}, expected {wanted}"
    return None


def _kind(held: "pa.DataType") -> str:
    """What a column of this type holds."""
    from pyarrow import types

    if types.is_string(held) or types.is_large_string(held):
        return "text"
    if types.is_integer(held) or types.is_floating(held):
        return "numbers"
    return "true or false" if types.is_boolean(held) else str(held)


def _misfit(cases: "pa.Table") -> str | None:
    """A value that is no measurement, or the lack of one that says which case this is. Undefined measurements are a policy's business."""
    import numpy as np

    for column in (*TEXTS, "threshold"):
        if holes := cases[column].null_count:
            return f"{holes} rows without {column}"
    for column in COLUMNS:
        if column in (*TEXTS, *FLAGS):
            continue
        values = cases[column].to_numpy()
        highest, fitting = (
            (1, "from 0 to 1") if column in FRACTIONS else (sys.float_info.max, "finite and not negative")
        )
        with np.errstate(invalid="ignore"):  # infinity has no remainder
            misfits = (values < 0) | (values > highest)
            if column.startswith("n_"):
                misfits, fitting = misfits | (values % 1 != 0) & ~np.isnan(values), "a count"
        if misfits.any():
            return f"{column} {values[misfits][0]:g} is not {fitting}"
    return None
