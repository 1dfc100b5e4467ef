"""One training is one record: no two records have the times or, under two seeds, the predictions of one."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dgbench.errors import DgbenchError
from dgbench.store.foreign import read_arrow
from dgbench.store.times import EVALUATION_LOG, STAGE_LOG
from dgbench.verification.record import Record

if TYPE_CHECKING:
    import pandas as pd


class Owner(NamedTuple):
    """Where something that only one run can have was found first: the run's folder, the file, and what another run would have in common
    with it that may have it too."""

    run: Path
    file: Path
    common: str


def check_copies(record: Record, rows: "pd.DataFrame", owners: dict[str, Owner]) -> None:
    """Raise DgbenchError where the times or predictions of a record are those of one in ``owners``, by their hash; else they are added.
    Second records of one run are compared elsewhere (:func:`dgbench.store.tiers.require_second_run`)."""
    run = record.spec.folder(record.root)
    for digest, file, common in _marks(record, rows):
        first = owners.setdefault(digest, Owner(run, file, common))
        if run != first.run and common != first.common:
            what = "predictions" if file.name == "cases.parquet" else "times"
            raise DgbenchError(f"{file}: has the {what} of {first.file} — a copy is no run of its own, leave it out")


def _marks(record: Record, rows: "pd.DataFrame") -> Iterator[tuple[str, Path, str]]:
    """Hash, file and excuse: a training may stand in two runs under one key, and two methods of one seed may come to the same."""
    for name, stage in record.own.items():
        log = record.path / name / STAGE_LOG
        yield hashlib.sha256(log.read_bytes()).hexdigest(), log, stage.key
    log = record.path / "evaluation" / EVALUATION_LOG
    if log.is_file() and len(read_arrow(log)):
        yield hashlib.sha256(log.read_bytes()).hexdigest(), log, record.spec.key
    view = ["case", "setting", "checkpoint", "threshold"]
    numbers = rows[rows["volume_prediction_mm3"] > 0].sort_values(view)
    if len(numbers):
        text = numbers[[*view, "volume_prediction_mm3", "dsc"]].to_json(orient="values", double_precision=12)
        digest = hashlib.sha256(text.encode()).hexdigest()
        yield digest, record.path / "evaluation" / "cases.parquet", str(record.spec.seed)
