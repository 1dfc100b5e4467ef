"""A folder of records: each one checked, what they say of the same cases compared, the tables rebuilt."""

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dgbench.atomic import read_json
from dgbench.errors import DgbenchError
from dgbench.leaderboard.compile import compile_runs
from dgbench.leaderboard.sheets import to_markdown
from dgbench.leaderboard.tables import leaderboard_sheets
from dgbench.protocol import Protocol, load_protocol
from dgbench.store.folder import RunFolder, RunSpec, iter_runs
from dgbench.store.manifest import MANIFEST, REPRODUCTIONS, Manifest
from dgbench.store.record import write_record
from dgbench.store.tiers import TIERS, reproductions, supported_tier
from dgbench.verification.command import check_command
from dgbench.verification.copies import Owner, check_copies
from dgbench.verification.cost import check_cost
from dgbench.verification.record import Record, check_record
from dgbench.verification.rows import OF_REFERENCE, check_rows
from dgbench.verification.split import check_splits

if TYPE_CHECKING:
    import pandas as pd

_FIRST_SEEDS = re.compile(r"--seeds (\d{1,4}): ")

References = dict[tuple[str, str], tuple[str, "pd.DataFrame"]]
"""By evaluated files (of the phantom, its recipe) and stage: the record that came first, and the references of its cases."""
Files = tuple[str, bool]
"""What was evaluated, as a hash, and whether by shared stages."""
Watch = Callable[[Sequence[RunFolder]], Iterable[RunFolder]]
"""Passes the records on, one after the other."""


@dataclass(frozen=True)
class Report:
    """What one pass found: number of records, why any is refused, and lines for people (tiers, holes, tables)."""

    records: int
    refused: tuple[str, ...]
    lines: tuple[str, ...]


def verify_tree(root: Path, protocols: Sequence[Protocol] = (), watch: Watch = iter) -> Report:
    """Check every record below ``root``; protocols that are not shipped are given. Holes between records are listed, not refused; a
    committed table ``<protocol>-<preset>.md`` that is not made of the records is refused; any other file beside the records is named.
    ``watch`` passes the records on and may show how far it is.

    Raises:
        DgbenchError: ``root`` is no folder, or holds no record.
    """
    if not root.is_dir():
        raise DgbenchError(f"{root}: no such folder — name the folder of the records, such as leaderboards")
    refused: list[str] = []
    runs = list(iter_runs(root, lambda _, error: refused.append(str(error))))
    total = len(runs) + len(refused)
    if not total:
        raise DgbenchError(f"{root}: holds no record — write some with `dgbench submit RUN --to {root}`")
    contracts = {protocol.name: protocol for protocol in protocols}
    refused += _refusals(root, runs, contracts, watch)
    lines: list[str] = []
    if not refused:
        lines.append(_summary(runs))
        tables = dict.fromkeys((run.spec.protocol.name, run.spec.protocol.preset) for run in runs)
        for name, preset in tables:
            try:
                lines += _check_table(root, contracts[name], preset)
            except DgbenchError as error:
                refused.append(str(error))
        known = {_page(root, *table) for table in tables}
        lines += [f"not looked at: {path.relative_to(root)}, part of no record" for path in _others(root, runs, known)]
    return Report(total, tuple(refused), tuple(lines))


def refusals(runs: Sequence[RunFolder], protocols: Sequence[Protocol] = (), watch: Watch = iter) -> list[str]:
    """Why records of ``runs``, which with the stages that they share are all there is, would be refused; none of them is kept. Folders are
    named below that of the records.

    Raises:
        DgbenchError: a run cannot become a record (:func:`dgbench.store.record.write_record`).
    """
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        try:
            for run in runs:
                write_record(run, root)
            lines = _refusals(root, list(iter_runs(root)), {protocol.name: protocol for protocol in protocols}, watch)
        except DgbenchError as error:
            raise DgbenchError(str(error).replace(f"{root}/", "")) from None
    return [line.replace(f"{root}/", "") for line in lines]


def _refusals(root: Path, runs: Sequence[RunFolder], contracts: dict[str, Protocol], watch: Watch) -> list[str]:
    """Why records below ``root`` are refused, each by itself and beside the others; ``contracts`` gains the protocols that were read."""
    refused: list[str] = []
    references: References = {}
    owners: dict[str, Owner] = {}
    heldout: dict[Files, dict[str, set[str]]] = {}
    for run in watch(runs):
        try:
            contract = contracts.get(run.spec.protocol.name) or load_protocol(run.spec.protocol.name)
            contracts[contract.name] = contract
            found = [(record, _check_one(record, contract, references, owners)) for record in _records(run)]
            _check_tier(run)
        except DgbenchError as error:
            refused.append(str(error))
        else:
            for record, cases in found:
                heldout.setdefault((_content(record), record.shared), {})[_name(record)] = cases
    refused += (line for records in heldout.values() for line in _incomplete(root, records))
    return refused


def _records(run: RunFolder) -> Iterator[Record]:
    """The record itself, then its reproductions, which are of the same run."""
    _check_place(run)
    yield Record(run.root, run.path, run.spec)
    for folder in reproductions(run.path):
        spec = RunSpec.read(folder)
        if spec.key != run.spec.key or spec.folder(run.root) != run.path:
            raise DgbenchError(f"{folder / 'spec.json'}: is of run {spec.key[:8]}, the record is of {run.spec.key[:8]}")
        yield Record(run.root, folder, spec)


def _check_place(run: RunFolder) -> None:
    """No folder from the root to the record is a link, and beside second records nothing is kept."""
    above = [folder for folder in run.path.parents if run.root in folder.parents]
    if links := [folder for folder in (run.path, *above) if folder.is_symlink()]:
        raise DgbenchError(f"{links[0]}: is a link — records lie below {run.root} themselves")
    seconds = run.path / REPRODUCTIONS
    inside = sorted(seconds.iterdir()) if seconds.is_dir() else [seconds] if seconds.exists() else []
    stray = [path for path in inside if not path.is_dir()] + [path / REPRODUCTIONS for path in inside]
    if wrong := [path for path in stray if path.exists()]:
        raise DgbenchError(f"{wrong[0]}: is no second record of {run.relative} — remove it")


def _check_one(record: Record, protocol: Protocol, references: References, owners: dict[str, Owner]) -> set[str]:
    """A record by itself, and its references, times and predictions beside those of the others; which cases were held out."""
    Manifest.read(record.path).check(record.path)
    resolved = check_record(record, protocol)
    check_command(record, protocol)
    check_splits(record, resolved)
    rows = check_rows(record, resolved)
    _check_agreement(record, _judged(record, protocol), rows, references)
    check_cost(record)
    check_copies(record, rows, owners)
    return set(rows.loc[rows["role"] == "held-out", "case"])


def _name(record: Record) -> str:
    return record.path.relative_to(record.root).as_posix()


def _content(record: Record) -> str:
    return str(read_json(record.path / "evaluation" / "spec.json")["content"])


def _incomplete(root: Path, records: Mapping[str, set[str]]) -> Iterator[str]:
    """The records, all of the same evaluated files, that lack a held-out case of another one: a line each."""
    for name, cases in records.items():
        other = max(records, key=lambda one: len(records[one] - cases))
        if lacking := records[other] - cases:
            yield f"{root / name}: {len(cases)} held-out cases, without {min(lacking)} of {other} — a record holds all of them"


def _judged(record: Record, protocol: Protocol) -> str:
    """The hash of the evaluated files; for the phantom that of its recipe, whose masks are the same on every machine."""
    recipe = record.spec.data.centers.get("phantom")
    return recipe if recipe is not None and protocol.kind == "phantom" else _content(record)


def _check_agreement(record: Record, judged: str, rows: "pd.DataFrame", references: References) -> None:
    """Records of the same evaluated files have the same references."""
    path = record.path
    heldout = rows[(rows["role"] == "held-out") & ~rows["failed"].astype(bool)]
    for stage, of_stage in heldout.groupby("stage"):
        own = of_stage.groupby("case")[list(OF_REFERENCE)].first()
        name, known = references.setdefault((judged, str(stage)), (_name(record), own))
        common = known.index.intersection(own.index)
        wrong = (known.loc[common] != own.loc[common]).any(axis=1)
        if wrong.any():
            raise DgbenchError(
                f"{path}: case {wrong[wrong].index[0]}: its reference is not that in {name}, of the same files"
            )


def _check_tier(run: RunFolder) -> None:
    claimed, supported = Manifest.read(run.path).tier, supported_tier(run.path)
    if TIERS.index(claimed) > TIERS.index(supported):
        raise DgbenchError(
            f"{run.path / MANIFEST}: tier {claimed}, its {len(reproductions(run.path))} reproductions support {supported} — a second "
            "record of the same key from another environment raises it (`dgbench submit`)"
        )


def _summary(runs: list[RunFolder]) -> str:
    counts = Counter(Manifest.read(run.path).tier for run in runs)
    return f"{len(runs)} records verified: {', '.join(f'{counts[tier]} {tier}' for tier in TIERS if counts[tier])}"


def _page(root: Path, protocol: str, preset: str) -> Path:
    return root / f"{protocol}-{preset}.md"


def _others(root: Path, runs: Sequence[RunFolder], known: Collection[Path]) -> list[Path]:
    """Files below ``root`` that belong to no record and are not ``known``, sorted."""
    records = {run.path for run in runs}
    files = (path for path in root.rglob("*") if not path.is_dir() or path.is_symlink())
    return sorted(path for path in files if path not in known and records.isdisjoint(path.parents))


def _check_table(root: Path, protocol: Protocol, preset: str) -> list[str]:
    """Holes of one protocol and preset, and its committed table against what the records give, of all seeds or as many as it says."""
    page = _page(root, protocol.name, preset)
    try:
        committed = page.read_text(encoding="utf-8") if page.exists() else None
    except (OSError, ValueError) as error:
        raise DgbenchError(f"{page}: cannot be read ({error}) — remove it, and write the table again") from None
    said = _FIRST_SEEDS.search(committed or "")
    seeds = int(said[1]) if said else None
    compiled = compile_runs(root, protocol=protocol, preset=preset, seeds=seeds)
    lines = [
        f"hole: {hole.label}, held-out {hole.heldout}, seed {hole.seed}: {hole.reason} — {hole.command}"
        for table in compiled.tables
        for hole in table.missing
    ]
    only = "" if seeds is None else f" --seeds {seeds}"
    command = (
        f"dgbench leaderboard --runs {root} --protocol {protocol.word} --preset {preset}{only} --format md > {page}"
    )
    if committed is None:
        return [*lines, f"table {page.name} is not there — {command}"]
    if committed.strip() != to_markdown(leaderboard_sheets(compiled)).strip():
        raise DgbenchError(f"{page}: is not the table of these records — {command}")
    alone = "" if seeds is None else f", --seeds {seeds}"
    return [*lines, f"table {page.name} is that of the records{alone}"]
