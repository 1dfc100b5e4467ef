"""Committed records in a folder of their own, and what a hand could change in them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from dgbench.atomic import read_json, write_json
from dgbench.store.keys import key_of
from dgbench.store.manifest import Manifest, Tier

COMMITTED = Path(__file__).parent.parent / "leaderboards"


def copy_records(folder: Path) -> Path:
    """The committed records of two methods at one center with one seed, and of their shared stages."""
    for method in ("_pancreas", "erm", "randconv"):
        (record,) = (COMMITTED / "phantom" / "MSD" / method).glob("seed0-*")
        shutil.copytree(record, folder / record.relative_to(COMMITTED))
    return folder


def record_of(records: Path, method: str = "erm") -> Path:
    (folder,) = (records / "phantom" / "MSD" / method).iterdir()
    return folder


def rehash(record: Path, tier: Tier = "experimental") -> None:
    Manifest.of(record, tier).write(record)


def change(path: Path, edit: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    write_json(path, edit(read_json(path)))


def change_rows(record: Path, edit: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    path = record / "evaluation" / "cases.parquet"
    edit(pd.read_parquet(path)).to_parquet(path, index=False)


def official(rows: pd.DataFrame, case: str = "MSD/MSD_0001") -> Any:
    return (rows["case"] == case) & (rows["setting"] == "F-Seg") & (rows["threshold"] == 0.5)


def raise_dsc(rows: pd.DataFrame) -> pd.DataFrame:
    rows.loc[official(rows), "dsc"] *= 1.01
    return rows


def rekeyed(spec: dict[str, Any]) -> dict[str, Any]:
    """A stage's or evaluation's spec with the key that follows from it."""
    return spec | {"key": key_of({field: value for field, value in spec.items() if field != "key"})}


def resealed(record: Path) -> Path:
    """The record with all keys, names and hashes made anew, as one writes it who forges a whole run; where it lies then."""
    spec, root = read_json(record / "spec.json"), record.parents[3]
    shared = {name: link["key"] for name, link in spec["stages"].items() if "/_pancreas/" in link["folder"]}
    own = {}
    for name in spec["stages"].keys() - shared.keys():
        stage = rekeyed(read_json(record / name / "spec.json"))
        write_json(record / name / "spec.json", stage)
        own[name] = stage["key"]
    evaluation = read_json(record / "evaluation" / "spec.json")
    judged = {name: evaluation["how"][name] for name in ("tta", "thresholds", "checkpoints")}
    key = key_of({"evaluation": judged, "stages": own, "shared": shared})
    folder = root / "phantom" / spec["heldout"] / spec["method"]["name"] / f"seed{spec['seed']}-{key[:8]}"
    for name in own:
        spec["stages"][name] = {"key": own[name], "folder": f"{folder.relative_to(root).as_posix()}/{name}"}
    write_json(record / "spec.json", spec | {"key": key})
    write_json(
        record / "evaluation" / "spec.json", rekeyed(evaluation | {"train_keys": {**shared, **own}, "version": 4})
    )
    folder.parent.mkdir(exist_ok=True)
    record.rename(folder)
    rehash(folder)
    return folder


def log_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_log(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
