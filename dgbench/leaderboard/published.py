"""Results that papers report, as printed: shown beside a leaderboard, marked as reported, and never ranked with its rows."""

from importlib import resources
from pathlib import Path
from typing import Literal, NamedTuple, Self

import yaml
from pydantic import ValidationError, model_validator

from dgbench.errors import DgbenchError, suggest
from dgbench.frozen import Frozen, one_line
from dgbench.protocol import Protocol


class Accuracy(NamedTuple):
    """DSC in percent, ASD and HD95 in mm."""

    dsc: float
    asd: float
    hd95: float


class Cost(NamedTuple):
    """Parameters in units of 10⁷, floating-point operations in 10⁹, inference time in seconds per case."""

    params_1e7: float
    gflops: float
    seconds: float


class Reported(Frozen):
    """One printed row: accuracy per held-out center and the printed mean; ``note`` names a misprint or another design."""

    table: str
    setting: str
    method: str
    centers: dict[str, Accuracy]
    mean: Accuracy
    cost: Cost | None = None
    note: str | None = None


class Published(Frozen):
    """The tables of one paper. ``protocols`` are those whose leaderboards it may stand beside; ``counterparts`` names the table that
    answers each setting of such a leaderboard, ``in_domain`` that of the in-domain variant of such a protocol."""

    name: str
    source: str
    kind: Literal["phantom", "patient"]
    protocols: tuple[str, ...]
    centers: tuple[str, ...]
    counterparts: dict[str, str]
    in_domain: dict[str, str]
    remarks: tuple[str, ...]
    rows: tuple[Reported, ...]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for row in self.rows:
            if set(row.centers) != set(self.centers):
                raise ValueError(f"table {row.table}, {row.method}: expected exactly the centers {list(self.centers)}")
        return self

    def beside(self, protocol: Protocol) -> "Published | None":
        """These tables with the counterparts for a leaderboard of ``protocol``; None where they may not stand beside it."""
        if protocol.folds:
            return self.model_copy(update={"counterparts": self.in_domain}) if protocol.base in self.protocols else None
        return self if protocol.name in self.protocols else None

    def counterpart(self, setting: str) -> tuple[Reported, ...]:
        """The printed rows that answer ``setting`` (``F-Seg``, …), in printed order; empty if the paper has none."""
        table = self.counterparts.get(setting)
        return tuple(row for row in self.rows if row.table == table and row.setting == setting)


def published_names() -> list[str]:
    """Names of the shipped papers, sorted."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def load_published(name: str = "dual-task") -> Published:
    """The shipped tables of one paper. Raises DgbenchError when there is none of that name or its file is invalid."""
    if name not in published_names():
        raise DgbenchError(f"unknown published results {name!r}{suggest(name, published_names())}")
    try:
        return Published.model_validate(yaml.safe_load((_folder() / f"{name}.yaml").read_text(encoding="utf-8")))
    except ValidationError as error:
        raise DgbenchError(f"published results {name}: {one_line(error)}") from None


def _folder() -> Path:
    """Where the files are: inside the installed package, else in the checkout."""
    packaged = Path(str(resources.files("dgbench"))) / "_published"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "leaderboards" / "published"
