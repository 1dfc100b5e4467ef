"""The page of a held-out case: what every method's every seed made of it, and its overlays where run folders hold slices."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from dgbench.errors import DgbenchError
from dgbench.leaderboard.checked_rows import as_frame
from dgbench.leaderboard.figures.panels import unpictured
from dgbench.leaderboard.overlay import draw_overlays
from dgbench.leaderboard.page.facts import table_title, view_facts
from dgbench.leaderboard.page.folder import Site, file_name
from dgbench.leaderboard.policies import apply_policy
from dgbench.leaderboard.records import read_records
from dgbench.leaderboard.results import Compiled, CountedRun, Table
from dgbench.leaderboard.sheets import BLANK, Sheet, points
from dgbench.protocol import Protocol
from dgbench.store.slices import CaseSlice, slice_file

LARGEST = 2_000
"""Most cases × rows for which case pages are written unasked."""
PICTURE_DPI = 110


class CaseScore(NamedTuple):
    """One case in one run as text, and its DSC in [0, 1]; None where the policy leaves it out."""

    text: str
    dsc: float | None


Scores = Mapping[str, Mapping[str, CaseScore]]
"""By run folder, then by case id."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One drawn overlay: the file beside the page, and what it shows."""

    file: str
    label: str
    alt: str


@dataclass(frozen=True, kw_only=True)
class CasePage:
    """What the template of a case shows: a sheet per table, pictures by table or why there is none, the ``facts`` of the view, what the
    networks knew of it, and the neighbours in its center."""

    case: str
    center: str
    file: str
    sheets: tuple[Sheet, ...]
    pictures: tuple[Picture, ...]
    without: tuple[str, ...]
    unpictured: str | None
    facts: Mapping[str, str]
    standing: str
    before: str | None
    after: str | None


def case_file(case: str) -> str:
    """The file of a case (``center/name``) within the page."""
    center, _, name = case.partition("/")
    return f"cases/{file_name(center)}/{file_name(name or center)}.html"


def case_scores(compiled: Compiled, root: Path, protocol: Protocol) -> dict[str, dict[str, CaseScore]]:
    """The scores of every counted run, read again from its evaluation, in the view and under the policy of ``compiled``."""
    wanted = {folder for table in compiled.tables for folder in _folders(table)}
    (records,), _ = read_records(
        root, protocol, [compiled.view], lambda spec: spec.folder(root).relative_to(root).as_posix() in wanted
    )
    found: dict[str, dict[str, CaseScore]] = {}
    for record in records:
        if record.rows is None:
            continue
        rows = apply_policy(as_frame(record.rows), compiled.policy)
        columns = ("case", "dsc", "included", "failed", "empty_prediction")
        found[record.folder] = {
            str(case): _score(dsc, included, failed, empty)
            for case, dsc, included, failed, empty in zip(*(rows[column] for column in columns), strict=True)
        }
    return found


def _score(dsc: float, included: bool, failed: bool, empty: bool) -> CaseScore:
    if not included:
        return CaseScore("no lesion, excluded", None)
    mark = " (failed)" if failed else " (empty)" if empty else ""
    return CaseScore(f"{points(dsc)}{mark}", float(dsc))


def _folders(table: Table) -> Iterator[str]:
    for row in table.rows:
        for result in row.centers.values():
            yield from (folder for run in result.runs.values() for folder in run.folders)


def cases_by_center(scores: Scores) -> dict[str, list[str]]:
    """Ids of all scored cases by center, both sorted."""
    cases: dict[str, set[str]] = {}
    for one in scores.values():
        for case in one:
            cases.setdefault(case.partition("/")[0], set()).add(case)
    return {center: sorted(cases[center]) for center in sorted(cases)}


def size(compiled: Compiled) -> int:
    """Cases × rows over all tables: what case pages would have to tell."""
    return sum(sum(table.n_cases.values()) * len(table.rows) for table in compiled.tables)


def case_pages(compiled: Compiled, root: Path, scores: Scores, site: Site) -> Iterator[CasePage]:
    """One page per case, in the order of centers and cases; its pictures are drawn into ``site``."""
    reason, facts = unpictured(compiled.view), view_facts(compiled)
    if len(compiled.tables) > 1:
        facts["Scans"] = "each table's own: scans that other presets draw, or of other data, may have one name"
    for center, cases in cases_by_center(scores).items():
        for position, case in enumerate(cases):
            pictures, without = ((), ()) if reason else _pictures(compiled, root, scores, case, site)
            yield CasePage(
                case=case,
                center=center,
                file=case_file(case),
                sheets=tuple(_sheet(compiled, table, scores, center, case) for table in compiled.tables),
                pictures=pictures,
                without=without,
                unpictured=reason,
                facts=facts,
                standing="judged by networks that were trained on other folds of its center"
                if compiled.folds
                else "which no method saw in training",
                before=cases[position - 1] if position else None,
                after=cases[position + 1] if position + 1 < len(cases) else None,
            )


def _sheet(compiled: Compiled, table: Table, scores: Scores, center: str, case: str) -> Sheet:
    """DSC of the case by row and seed; a seed that a row does not owe is blank."""
    seeds = sorted({seed for row in table.rows for seed in row.seeds})
    columns = ("method", *(f"seed {seed}" for seed in seeds))
    lines = []
    for row in table.rows:
        runs = row.centers[center].runs if center in row.centers else {}
        found = {seed: _found(scores, run, case) for seed, run in runs.items()}
        texts = dict.fromkeys(row.seeds, "no result") | {seed: one[1].text for seed, one in found.items() if one}
        lines.append((row.label, *(texts.get(seed, BLANK) for seed in seeds)))
    return Sheet(
        heading=(f"DSC in points — {table_title(compiled, table)}",),
        columns=columns,
        rows=tuple(lines),
        numeric=frozenset(columns[1:]),
    )


def _found(scores: Scores, run: CountedRun, case: str) -> tuple[str, CaseScore] | None:
    """The folder in which the case was judged, and its score; None where it was not."""
    return next(((folder, scores[folder][case]) for folder in run.folders if case in scores.get(folder, {})), None)


def _pictures(
    compiled: Compiled, root: Path, scores: Scores, case: str, site: Site
) -> tuple[tuple[Picture, ...], tuple[str, ...]]:
    """An overlay for every row that has a slice of the case, from its first such seed; and the rows without."""
    pictures: list[Picture] = []
    without: list[str] = []
    center = case.partition("/")[0]
    for table in compiled.tables:
        for row in table.rows:
            runs = row.centers[center].runs if center in row.centers else {}
            label = row.label if len(compiled.tables) == 1 else f"{row.label}, {_told_apart(compiled, table)}"
            picture = None
            for seed, run in runs.items():
                found = _found(scores, run, case)
                if found is not None and (path := slice_file(root / found[0], case)).is_file():
                    picture = _draw(path, case, f"{label}, seed {seed}", found[1].text, compiled, site)
                    break
            if picture is None:
                without.append(label)
            else:
                pictures.append(picture)
    return tuple(pictures), tuple(without)


def _told_apart(compiled: Compiled, table: Table) -> str:
    """Which of several tables this is, shortly where that is enough."""
    alone = [other.preset for other in compiled.tables].count(table.preset) == 1
    return f"preset {table.preset}" if alone else table_title(compiled, table)


def _draw(path: Path, case: str, label: str, score: str, compiled: Compiled, site: Site) -> Picture | None:
    """Draw the slice, or take the picture of the same slice from the page before; nothing where it cannot be read."""
    try:
        digest = sha256(path.read_bytes() + label.encode("utf-8", "replace")).hexdigest()[:12]
        shown = CaseSlice.load(path)
    except (OSError, DgbenchError):
        return None
    file = f"{digest}.png"
    name = case_file(case).removesuffix(".html") + f"-{file}"
    if not site.reuse(name):
        draw_overlays([shown], site.place(name), kind=compiled.kind, title=label, dpi=PICTURE_DPI)
    alt = (
        f"Slice {shown.slice_index + 1} of {shown.n_slices} with the contours of the reference and of {label}; "
        f"DSC of the whole case in this table: {score}"
    )
    return Picture(file=name.rpartition("/")[2], label=label, alt=alt)
