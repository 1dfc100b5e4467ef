"""Tables and archives of arrays as they come from disk, perhaps from somebody else's: data that is never unpickled, with an end to what a
file may claim, and one kind of error for whatever is wrong with it."""

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile, ZipFile

from numpy.typing import NDArray

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa

MAX_ROWS = 1_000_000
"""More rows than any evaluation makes: 1,000 cases in 6 settings with 2 checkpoints at 9 thresholds are 108,000."""
MAX_BYTES = 2**30
"""Unpacked; more than a table of :data:`MAX_ROWS` rows takes, or the 8-bit probabilities of 1,000 slices of 1024×1024."""


def read_arrow(path: Path, columns: Sequence[str] | None = None, coded: Sequence[str] = ()) -> "pa.Table":
    """The Parquet file ``path``, or some of its ``columns``; text in those that are ``coded`` as a dictionary.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no table, is damaged, lacks a column, or claims more than :data:`MAX_ROWS` rows or :data:`MAX_BYTES` bytes.
    """
    import pyarrow as pa
    from pyarrow import parquet

    if not path.is_file():  # a device never ends, a pipe never begins
        raise ValueError("no regular file")
    _limit(path.stat().st_size)
    with told_as_value_error():
        # tables are small and many are read: one read is faster than one for each column, threads would cost more than they bring
        data = pa.BufferReader(path.read_bytes())
        claimed = parquet.read_metadata(data)
        if claimed.num_rows > MAX_ROWS:  # a few bytes can claim, and unpack to, more than fits the memory
            raise ValueError(f"{claimed.num_rows} rows, an evaluation has at most {MAX_ROWS}")
        _limit(sum(claimed.row_group(index).total_byte_size for index in range(claimed.num_row_groups)))
        held = claimed.schema.to_arrow_schema().names
        if columns is not None and (lacking := [name for name in columns if name not in held]):
            raise ValueError(f"no column {', '.join(lacking)}")
        coded = [name for name in coded if name in held]
        with parquet.ParquetFile(data, metadata=claimed, read_dictionary=coded, pre_buffer=False) as file:
            table = file.read(columns, use_threads=False)
        table.validate(full=True)  # text that is none would be noticed when it is first looked at
        return table


def rows_where(table: "pa.Table", column: str, wanted: str | Callable[[str], bool]) -> "NDArray[np.bool_]":
    """Which rows hold the text ``wanted``, or one of which it is true, in a ``column`` that is coded as a dictionary, (rows,)."""
    import numpy as np

    fits: Callable[[str], bool] = (lambda name: name == wanted) if isinstance(wanted, str) else wanted
    found = [np.zeros(0, dtype=bool)]
    for chunk in table[column].chunks:
        matches = np.array([fits(name) for name in chunk.dictionary.to_pylist()], dtype=bool)
        found.append(matches[chunk.indices.to_numpy()])
    return np.concatenate(found)


def texts_of(table: "pa.Table", column: str, rows: "NDArray[np.bool_]") -> set[str]:
    """The texts that these ``rows`` hold in a ``column`` that is coded as a dictionary."""
    import numpy as np

    found: set[str] = set()
    start = 0
    for chunk in table[column].chunks:
        names = chunk.dictionary.to_pylist()
        found.update(names[code] for code in np.unique(chunk.indices.to_numpy()[rows[start : start + len(chunk)]]))
        start += len(chunk)
    return found


def to_frame(table: "pa.Table") -> "pd.DataFrame":
    """``table`` for pandas, by the types of its columns; what the file says about pandas itself is not asked.

    Raises:
        ValueError: pandas has no such type.
    """
    with told_as_value_error():
        frame: pd.DataFrame = table.replace_schema_metadata(None).to_pandas()
        return frame


def read_table(path: Path, columns: Sequence[str] | None = None) -> "pd.DataFrame":
    """:func:`read_arrow` and :func:`to_frame` in one."""
    return to_frame(read_arrow(path, columns))


@contextmanager
def told_as_value_error() -> Iterator[None]:
    """Whatever a damaged file leads to while its values are taken, as one kind of error: it lacks a name, holds another type, or numbers
    that overflow."""
    from pyarrow import ArrowException

    try:
        yield
    except (OSError, ValueError):
        raise
    except (
        ArrowException,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        MemoryError,
        RecursionError,
    ) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays in the ``.npz`` file ``path`` by name.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such archive, is damaged, holds objects instead of numbers and text, or claims more than :data:`MAX_BYTES`.
    """
    import numpy as np

    try:
        with path.open("rb") as file:  # opened here: NumPy would leave a file that is no archive open
            with ZipFile(file) as archive:
                _limit(sum(entry.file_size for entry in archive.infolist()))
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                return dict(arrays)
    except (OSError, ValueError):
        raise
    except (BadZipFile, zlib.error, EOFError, KeyError, TypeError, RuntimeError, MemoryError, OverflowError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error  # a RuntimeError comes of an encrypted archive


def _limit(claimed: int) -> None:
    if claimed > MAX_BYTES:
        raise ValueError(f"unpacks to {claimed} bytes, more than {MAX_BYTES}")
