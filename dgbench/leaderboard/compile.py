"""A leaderboard as a pure function of run folders.

One table per (dgbench Major.Minor, protocol version and content, preset, identity of the data), because only runs that agree in all of
these are comparable; one row per (method, version, config, preset overrides). A row's number per center is the mean over cases (in-domain
those of all folds together, each judged once), then over seeds; its mean is the equal-weight mean over centers. A row with a missing run
has no mean and no rank, and a center with a missing seed or fold has no number: the hole is listed with its reason and the command that
fills it.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from dgbench.errors import DgbenchError
from dgbench.leaderboard import notes as notes_on
from dgbench.leaderboard import policies
from dgbench.leaderboard.comparisons import statistics_of
from dgbench.leaderboard.costs import RunCost, common_machine, row_cost
from dgbench.leaderboard.holes import Place, damaged, elsewhere, hole_of, place_of
from dgbench.leaderboard.ranking import ranks
from dgbench.leaderboard.records import (
    NO_THRESHOLD,
    OFFICIAL,
    Record,
    View,
    comparable_groups,
    place_words,
    read_records,
    refuse_partial,
    start_command,
)
from dgbench.leaderboard.results import (
    CenterResult,
    Compiled,
    CountedRun,
    Missing,
    Row,
    Score,
    Table,
)
from dgbench.leaderboard.rows import RowKey, baseline_of, row_labels
from dgbench.leaderboard.run_results import Result, Results, counts_of_one_seed, summaries
from dgbench.leaderboard.statistics import BASELINE
from dgbench.protocol import Protocol
from dgbench.store.folder import RunSpec
from dgbench.store.tiers import lowest_tier


def compile_runs(
    root: Path,
    *,
    protocol: Protocol,
    preset: str | None = None,
    view: View = OFFICIAL,
    seeds: int | None = None,
    include: Callable[[RunSpec], bool] | None = None,
    processes: int = 1,
) -> Compiled:
    """Compile the runs of ``protocol`` under ``root`` (a runs folder) into tables.

    Args:
        root: the folder given as ``--runs``; a folder without runs gives no tables.
        protocol: the protocol; its metric constants resolve undefined distances under the default policy.
        preset: only this preset; all by default.
        view: setting, threshold, checkpoint and policy; only the official view is ranked.
        seeds: only the seeds 0 to ``seeds`` − 1, so that rows with more seeds stand beside rows that have these alone; all by default.
        include: keeps a run by its spec; a run left out is neither a row nor a missing cell.
        processes: that read many runs side by side (:func:`dgbench.leaderboard.records.read_records`); the result is the same.

    Every row is expected at every center of its split and at every seed that any unmodified row of its table has.

    Raises:
        DgbenchError: the policy is unknown, or no run holds the threshold asked for, and some would count with another.
    """
    (compiled,) = compile_views(
        root, [view], protocol=protocol, preset=preset, seeds=seeds, include=include, processes=processes
    )
    return compiled


def compile_views(
    root: Path,
    views: Sequence[View],
    *,
    protocol: Protocol,
    preset: str | None = None,
    seeds: int | None = None,
    include: Callable[[RunSpec], bool] | None = None,
    processes: int = 1,
    first_method: str = BASELINE,
) -> list[Compiled]:
    """:func:`compile_runs` in each of ``views``, with every run read once; ``first_method`` is the one that the start command trains."""
    chosen = [policies.resolve(view.policy, protocol) for view in views]

    def wanted(spec: RunSpec) -> bool:
        early = seeds is None or spec.seed < seeds
        return early and preset in (None, spec.protocol.preset) and (include is None or include(spec))

    found, problems = read_records(root, protocol, views, wanted, processes)
    compiled = []
    for view, policy, records in zip(views, chosen, found, strict=True):
        tables = _tables(records, protocol, policy, view, problems)
        compiled.append(
            Compiled(
                protocol=protocol.name,
                kind=protocol.kind,
                folds=protocol.folds,
                view=view,
                first_seeds=seeds,
                policy=policy,
                nsd_tolerance_mm=protocol.metrics.nsd_tolerance_mm,
                tables=tables,
                problems=tuple(problems.values()),
                start=start_command(protocol, preset, root, first_method),
                options=("--protocol", protocol.word, *place_words(protocol, root)),
            )
        )
    return compiled


def _tables(
    records: Sequence[Record], protocol: Protocol, policy: policies.Policy, view: View, problems: Mapping[str, str]
) -> tuple[Table, ...]:
    """One table for each group of comparable runs."""
    lacking = [record.reason for record in records if (record.reason or "").startswith(NO_THRESHOLD)]
    if lacking and all(record.rows is None for record in records):
        raise DgbenchError(f"--threshold {view.threshold_text}: {lacking[0]}")
    groups: dict[tuple[str, int, str, str], list[Record]] = {}
    for record in sorted(records, key=lambda record: record.updated, reverse=True):
        version, ran = ".".join(record.spec.dgbench.split(".")[:2]), record.spec.protocol
        groups.setdefault((version, ran.version, ran.preset, ran.content), []).append(record)
    order = sorted(groups, key=lambda key: ([-int(part) for part in key[0].split(".")], -key[1], key[2]))
    tables = []
    for key in order:
        comparable = comparable_groups(groups[key])
        for members in comparable:
            others = {
                place_of(one) for group in comparable if group is not members for one in group if one.rows is not None
            }
            tables.append(_table(members, protocol, policy, view, problems, others))
    return tuple(tables)


def _table(
    records: list[Record],
    protocol: Protocol,
    policy: policies.Policy,
    view: View,
    problems: Mapping[str, str],
    others: Collection[Place],
) -> Table:
    """The table of comparable ``records``; ``others`` are the places that runs on other data fill in tables of their own."""
    records = refuse_partial(records)
    single, records, resolved = summaries(records, policy)
    rows: dict[RowKey, list[Record]] = {}
    for record in sorted(records, key=lambda record: record.folder):
        rows.setdefault(RowKey.of(record.spec), []).append(record)
    centers = _centers(records, protocol)
    plain = [record for record in records if not (record.spec.protocol.modified or record.spec.method.imported)]
    seeds = _seeds(plain or records)
    labels = row_labels(rows)
    heldouts = {center: protocol.heldouts_of(center) for center in centers}
    every_heldout = [name for names in heldouts.values() for name in names]
    results = Results(single, resolved)
    costs = {key: _costs(members) for key, members in rows.items()}
    baseline = baseline_of(rows)
    machine = common_machine(costs.values())
    ranked = (
        view.official and not protocol.folds and all(record.spec.protocol.ranked for record in plain) and bool(plain)
    )
    missing: list[Missing] = []
    compiled: list[Row] = []
    for key, members in rows.items():
        expected = _seeds(members) if key.modified or key.imported else seeds
        row, holes = _row(key, labels[key], members, results, heldouts, expected, view)
        cost = row_cost(costs[key], costs[baseline] if baseline else None, machine, every_heldout)
        row = replace(row, cost=cost, is_baseline=key == baseline)
        compiled.append(row)
        holes = [elsewhere(hole, key, others) for hole in holes]
        missing += [damaged(hole, f"{protocol.name}/{hole.heldout}/{key.method}", problems) for hole in holes]
    one_run = counts_of_one_seed(single, protocol)
    return Table(
        dgbench=tuple(sorted({record.spec.dgbench for record in records})),
        protocol_version=records[0].spec.protocol.version,
        content=records[0].spec.protocol.content,
        preset=records[0].spec.protocol.preset,
        ranked=ranked,
        data=_data_label(records),
        identities=dict(pair for record in records for pair in record.data.items()),
        centers=centers,
        seeds=seeds,
        baseline=labels[baseline] if baseline else BASELINE,
        n_cases={center: one_run[center]["n"] for center in centers if center in one_run},
        n_excluded={center: one_run[center]["n_excluded"] for center in centers if center in one_run},
        rows=_ranked(compiled, ranked),
        missing=tuple(missing),
        statistics=statistics_of(
            compiled, seeds, resolved, {labels[key]: found for key, found in costs.items()}, claims=ranked
        ),
    )


def _row(
    key: RowKey,
    label: str,
    members: list[Record],
    results: Results,
    heldouts: Mapping[str, Sequence[str]],
    seeds: Sequence[int],
    view: View,
) -> tuple[Row, list[Missing]]:
    notes: list[str] = []
    missing: list[Missing] = []
    centers = list(heldouts)
    finished: dict[str, dict[int, Result]] = {center: {} for center in centers}
    for center in centers:
        for seed in seeds:
            latest: list[Record] = []
            for heldout in heldouts[center]:
                cell = [record for record in members if record.spec.heldout == heldout and record.spec.seed == seed]
                counted = sorted(
                    (record for record in cell if record.folder in results.single), key=lambda r: (r.updated, r.folder)
                )
                if counted:
                    latest.append(counted[-1])
                else:
                    missing.append(hole_of(label, cell, members, center, heldout, seed))
                if len(counted) > 1:
                    notes.append(
                        f"{heldout} seed {seed}: {len(counted)} finished runs, the latest counts ({counted[-1].folder})"
                    )
            if len(latest) == len(heldouts[center]):
                finished[center][seed] = results.of(latest)
    complete = not missing
    mean = (
        _scores([_over_centers([finished[center][seed] for center in centers]) for seed in seeds]) if complete else {}
    )
    results_by_center = {center: _center(finished[center], len(seeds)) for center in centers}
    worst = min(centers, key=lambda name: results_by_center[name].scores["dsc"].mean) if complete else None
    row = Row(
        label=label,
        method=key.method,
        version=key.version,
        config=notes_on.common_config(members),
        modified=key.modified,
        control=members[0].spec.method.draws_factor != 1,
        imported=key.imported,
        tuned=key.tuned,
        is_baseline=False,
        seeds=tuple(seeds),
        centers=results_by_center,
        mean=mean,
        worst=worst,
        rank=None,
        cost=None,
        record=lowest_tier(record.tier for record in members if record.rows is not None),
        stamps=notes_on.stamps(members),
        notes=(
            *notes_on.stamps(members),
            *notes_on.counts(results_by_center),
            *(notes_on.repeated(results_by_center) if key.imported else _threshold_notes(finished, view)),
            *notes,
            *(record.cost for record in members if isinstance(record.cost, str)),
        ),
    )
    return row, missing


def _costs(members: list[Record]) -> dict[tuple[str, int], RunCost]:
    """By (center, seed); of several runs of a cell, the latest."""
    ordered = sorted(members, key=lambda record: (record.updated, record.folder))
    return {(r.spec.heldout, r.spec.seed): r.cost for r in ordered if isinstance(r.cost, RunCost)}


def _center(finished: Mapping[int, Result], expected: int) -> CenterResult:
    counts: Counter[str] = Counter()
    for result in finished.values():
        counts.update(result.counts)
    complete = len(finished) == expected
    return CenterResult(
        scores=_scores([result.means for result in finished.values()]) if complete else {},
        runs={
            seed: CountedRun(
                folders=tuple(record.folder for record in result.records),
                commands=tuple(record.spec.command for record in result.records),
                thresholds=tuple(record.threshold for record in result.records if record.threshold is not None),
                means={metric: value for metric, value in result.means.items() if not math.isnan(value)},
            )
            for seed, result in finished.items()
        },
        counts=dict(counts),
    )


def _over_centers(results: Sequence[Result]) -> dict[str, float]:
    """The equal-weight mean over centers; ``NaN`` where one center does not define the metric."""
    return {metric: fmean(result.means[metric] for result in results) for metric in results[0].means}


def _scores(per_seed: Sequence[Mapping[str, float]]) -> dict[str, Score]:
    """Mean and spread over seeds of each metric that every seed defines."""
    values = {metric: [means[metric] for means in per_seed] for metric in (per_seed[0] if per_seed else ())}
    return {
        metric: Score(mean=fmean(numbers), sd=_deviation(numbers) if len(numbers) > 1 else None, n_seeds=len(numbers))
        for metric, numbers in values.items()
        if not any(map(math.isnan, numbers))
    }


def _deviation(numbers: Sequence[float]) -> float:
    """The standard deviation of at least two numbers (n − 1 in the divisor); that of the library takes seconds for a large table."""
    mean = fmean(numbers)
    return math.sqrt(math.fsum((number - mean) ** 2 for number in numbers) / (len(numbers) - 1))


def _threshold_notes(finished: Mapping[str, Mapping[int, Result]], view: View) -> list[str]:
    """What a rule chose, by center and in the order of the seeds."""
    if not isinstance(view.threshold, str):
        return []
    chosen = {
        center: "/".join(f"{record.threshold:g}" for result in seeds.values() for record in result.records)
        for center, seeds in finished.items()
        if seeds
    }
    return [f"thresholds {', '.join(f'{center} {values}' for center, values in chosen.items())}"] if chosen else []


def _ranked(rows: Iterable[Row], ranked: bool) -> tuple[Row, ...]:
    """Complete rows by mean DSC, ranked where allowed (equal DSC, equal rank); incomplete rows after them by label; imported ones last."""

    def dsc(row: Row) -> float:
        return row.mean["dsc"].mean if row.complete else -1.0

    def rankable(row: Row) -> bool:
        return ranked and row.complete and not (row.modified or row.control or row.imported)

    rows = list(rows)
    standing = [row for row in rows if rankable(row)]
    places = {row.label: place for row, place in zip(standing, ranks([dsc(row) for row in standing]), strict=True)}
    placed = [replace(row, rank=places[row.label]) if rankable(row) else row for row in rows]
    return tuple(sorted(placed, key=lambda row: (row.imported, row.rank is None, -dsc(row), row.label)))


def _centers(records: Iterable[Record], protocol: Protocol) -> tuple[str, ...]:
    """Held-out and source centers of the runs, support centers left out; in the protocol's order. A prediction set owes every center, and
    so does an in-domain run, whose own is its only source."""
    names: set[str] = set()
    for record in records:
        names |= set(protocol.centers) if record.spec.method.imported or protocol.folds else set()
        names |= ({protocol.center_of(record.spec.heldout)} | set(record.spec.sources)) - set(record.spec.support)
    order = {name: position for position, name in enumerate(protocol.centers)}
    return tuple(sorted(names, key=lambda name: (order.get(name, len(order)), name)))


def _seeds(records: Iterable[Record]) -> tuple[int, ...]:
    return tuple(sorted({record.spec.seed for record in records}))


def _data_label(records: Iterable[Record]) -> str:
    """The identities of the data of all centers, shortened to eight characters each."""
    identities = {(name, identity[:8]) for record in records for name, identity in record.centers.items()}
    return ", ".join(f"{name} {identity}" for name, identity in sorted(identities))
