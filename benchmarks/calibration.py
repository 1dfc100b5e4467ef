"""How often the leaderboard's intervals are wrong: simulated tables without a true difference, over a named grid of variance ratios
(protocol.md §8), and the power for a true difference of +3 DSC points.

A table is the paired difference of one method to the baseline at every center, seed and patient; what both methods share (centers,
patients) cancels in it to the last bit, so the parts that are drawn are those of the difference:

    d[c,s,i] = m[c] + a[c,s] + b[c,i] + e[c,s,i]

with m the method × center effect, a trainings, b method × patient, e the rest. Tables go through the functions that the leaderboard
calls, with all B = 2000 resamples; a batch of tables shares its resampling counts, and every batch draws new ones. Records are
appended as cells complete, and the same call goes on where it stopped.

    python benchmarks/calibration.py run
    python benchmarks/calibration.py report     # the tables of docs/statistics.md, from the records
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import cache, partial
from itertools import combinations
from math import sqrt
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from dgbench.leaderboard.checked_rows import as_frame
from dgbench.leaderboard.ranking import simultaneous, tiers
from dgbench.leaderboard.records import OFFICIAL, read_records
from dgbench.leaderboard.resampling import (
    CENTERS_RESAMPLED_FROM,
    LEVEL,
    N_RESAMPLES,
    Kind,
    bootstrap,
    intervals,
    p_values,
    resampling_weights,
)
from dgbench.leaderboard.scores import FloatArray, ScoreTable
from dgbench.protocol import load_protocol
from dgbench.seeds import numpy_generator

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "benchmarks" / "results" / "calibration.jsonl"
GATE = ROOT / "benchmarks" / "results" / "phantom_gate.jsonl"
DOCUMENT = ROOT / "docs" / "statistics.md"
PROCEDURE = 1
"""Raised when what is measured changes, so that older records no longer count."""
TABLES = 10_000
BATCH = 200
GAIN = 3.0
LIMIT = 0.07
CONSERVATIVE = 0.025
KINDS: tuple[Kind, ...] = ("studentised", "percentile", "basic")
PATIENTS = (67, 20)
SEEDS = (5, 3)
COLLAPSING = 0.1
SKEW = 1.5
"""Shape of the gamma distribution of skewed patients: skewness 2/√1.5 = 1.6, about that of the phantom's records."""

RECORDED, RECORDED_SEEDS = ("dualtask", "randconv"), (0, 1, 2)
"""Methods and seeds of the committed records whose parts are taken for true: those with three seeds at every center."""
RECORDS_OF = "records of "


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of the grid; standard deviations in DSC points, of the difference between two methods.

    ``patients``: ``normal``, ``skewed``, ``records`` (drawn with replacement from the committed records' differences to erm with one
    seed) or ``records of METHOD`` (patients and residual drawn from what the committed records of that method show of each).
    ``loud``: the first center's seed part is larger by this factor. ``collapse``: a tenth of each method's trainings loses so many
    points. ``center``: method × center effect; it sums to zero over the centers unless ``new_centers``, where the claim is about
    centers that were not seen.
    """

    name: str
    seed: float = 0
    patient: float = 0
    residual: float = 0
    center: float = 0
    loud: float = 1
    collapse: float = 0
    patients: str = "normal"
    new_centers: bool = False
    n_centers: int = 3
    n_seeds: int = 5
    n_patients: int = 67

    def identity(self) -> dict[str, object]:
        """What identifies its record."""
        return {"procedure": PROCEDURE, "tables": TABLES, "resamples": N_RESAMPLES, **asdict(self)}


PROFILES = (
    Cell(name="seeds only", seed=5),
    Cell(name="seeds dominate", seed=10, patient=10, residual=5),
    Cell(name="seeds as patients", seed=5, patient=18),
    Cell(name="typical", seed=3, patient=18, residual=12),
    Cell(name="quiet seeds", seed=1, patient=18, residual=8),
    Cell(name="patients only", patient=18),
    Cell(name="residual dominates", seed=1, patient=5, residual=20),
    Cell(name="residual only", residual=18),
    Cell(name="method × center", seed=3, patient=18, residual=12, center=8),
    Cell(name="one loud center", seed=3, patient=18, residual=12, loud=4),
    Cell(name="collapsing trainings", seed=3, patient=18, residual=12, collapse=30),
    Cell(name="skewed patients", seed=3, patient=18, residual=12, patients="skewed"),
    Cell(name="skewed patients only", patient=18, patients="skewed"),
)


@cache
def seed_spread(arms: tuple[str, ...]) -> float:
    """Standard deviation over seeds, in points, of the difference of two trainings' mean DSC, from the phantom gate's records.

    Each of the gate's three seeds judges other cases, so the variance over seeds of the mean paired difference between two of its
    arms (training sets and budgets) holds the cases' share too; their sampling variance is taken away. Mean over centers and pairs
    of arms.
    """
    records = [json.loads(line) for line in GATE.read_text(encoding="utf-8").splitlines()]
    full = [r for r in records if (r["off"], r["precision"], r["lr"]) == (["annotation"], "bf16", 0.01)]
    judged = {(r["judged"], (r["arm"], r["draws"]), r["seed"]): r["dsc"] for r in full if r["arm"] in arms}
    centers, kinds, seeds = (sorted({key[place] for key in judged}) for place in range(3))
    excess = []
    for center in centers:
        for one, other in combinations(kinds, 2):
            if not all((center, arm, seed) in judged for arm in (one, other) for seed in seeds):
                continue
            differences = [
                np.array([dsc - judged[center, other, seed][case] for case, dsc in judged[center, one, seed].items()])
                for seed in seeds
            ]
            of_cases = np.mean([d.var(ddof=1) / len(d) for d in differences])
            excess.append(np.var([d.mean() for d in differences], ddof=1) - of_cases)
    return round(100 * sqrt(max(float(np.mean(excess)), 0)), 2)


@cache
def dsc_of_records(seed: int) -> dict[tuple[str, str], pd.Series]:
    """Per-case DSC in the committed records with this seed, by (held-out center, method)."""
    (records,), _ = read_records(
        ROOT / "leaderboards", load_protocol("phantom"), [OFFICIAL], lambda spec: spec.seed == seed
    )
    return {
        (r.spec.heldout, r.spec.method.name): as_frame(r.rows).set_index("case")["dsc"]
        for r in records
        if r.rows is not None
    }


@cache
def recorded() -> tuple[FloatArray, ...]:
    """Per center, every method's per-patient difference to erm in the committed records, each centered: (methods, cases), in points.

    Of one seed, so that a patient's lasting difference and the residual cannot be told apart; all of it is taken as lasting,
    which does not shrink with seeds.
    """
    dsc = dsc_of_records(0)
    found = []
    for center in sorted({center for center, _ in dsc}):
        others = [
            name for where, name in dsc if where == center and name in ("randconv", "dualtask", "dualtask_smooth")
        ]
        paired = np.stack([dsc[center, name] - dsc[center, "erm"] for name in sorted(others)])
        found.append(100 * (paired - paired.mean(axis=1, keepdims=True)))
    return tuple(found)


class Components(NamedTuple):
    """The parts of a method's difference to erm in the committed records, in points: standard deviations over centers together (root mean
    square), and per center what was seen of patients (means over seeds) and of the residual, both scaled to a standard deviation of 1."""

    seed: float
    patient: float
    residual: float
    patients: tuple[FloatArray, ...]
    residuals: tuple[FloatArray, ...]


@cache
def components(method: str) -> Components:
    """Estimated from :data:`RECORDED_SEEDS` by the method of moments (two-way analysis of variance, negative estimates are 0)."""
    by_seed = [dsc_of_records(seed) for seed in RECORDED_SEEDS]
    variances, patients, residuals = [], [], []
    for center in sorted({center for center, name in by_seed[0] if name == method}):
        paired = np.stack([100 * (dsc[center, method] - dsc[center, "erm"]) for dsc in by_seed])
        n_seeds, n_cases = paired.shape
        of_seeds, of_cases = (paired.mean(axis=axis, keepdims=True) - paired.mean() for axis in (1, 0))
        rest = paired - paired.mean() - of_seeds - of_cases
        mean_square = (rest**2).sum() / ((n_seeds - 1) * (n_cases - 1))
        between = of_seeds.var(ddof=1) - mean_square / n_cases, of_cases.var(ddof=1) - mean_square / n_seeds
        variances.append((*(max(variance, 0.0) for variance in between), mean_square))
        patients.append((of_cases / of_cases.std()).ravel())
        residuals.append((rest / rest.std()).ravel())
    seed, patient, residual = (round(float(np.sqrt(np.mean(part))), 2) for part in zip(*variances, strict=True))
    return Components(seed, patient, residual, tuple(patients), tuple(residuals))


def cells() -> Iterator[Cell]:
    """The whole grid."""
    for n_seeds in SEEDS:
        for n_patients in PATIENTS:
            for profile in PROFILES:
                yield replace(profile, n_seeds=n_seeds, n_patients=n_patients)
    patients = round(float(sqrt(np.mean([paired.var() for paired in recorded()]))), 2)
    seen = [
        Cell(name="phantom", seed=seed_spread(("sources",)), patient=patients, patients="records"),
        Cell(
            name="phantom, all arms",
            seed=seed_spread(("ceiling", "sources", "target")),
            patient=patients,
            patients="records",
        ),
    ]
    for method in RECORDED:
        parts, name = components(method), f"{RECORDS_OF}{method}"
        seen.append(Cell(name=name, seed=parts.seed, patient=parts.patient, residual=parts.residual, patients=name))
    for n_seeds in SEEDS:
        for n_patients in PATIENTS:
            for one in seen:
                cell = replace(one, n_seeds=n_seeds, n_patients=n_patients)
                yield cell
                yield replace(cell, name=f"{cell.name}, twice the seed spread", seed=round(2 * cell.seed, 2))
    common = partial(Cell, seed=3, patient=18, residual=12)
    yield common(name="one center alone", n_centers=1)
    yield Cell(name="one center alone, seeds only", n_centers=1, seed=5)
    yield common(name="six centers, resampled", n_centers=6, center=8, new_centers=True)
    yield common(name="six centers, resampled, effects equal", n_centers=6, new_centers=True)
    yield common(name="three fixed centers, misread as new ones", center=8, new_centers=True)


def simulate(cell: Cell, n_tables: int, random: np.random.Generator) -> dict[str, FloatArray]:
    """Tables without a true difference, (tables, seeds, patients) per center."""
    shape = (n_tables, cell.n_seeds, cell.n_patients)
    effects = cell.center * random.standard_normal((n_tables, cell.n_centers))
    if not cell.new_centers:
        effects -= effects.mean(axis=1, keepdims=True)
    found = {}
    for place in range(cell.n_centers):
        training = cell.seed * (cell.loud if place == 0 else 1) * random.standard_normal((*shape[:2], 1))
        if cell.collapse:
            failed = random.random((2, *shape[:2], 1)) < COLLAPSING
            training += cell.collapse * (failed[0].astype(np.float64) - failed[1])
        residual = cell.residual * _residual(cell, place, shape, random)
        patients = _patients(cell, place, n_tables, random)
        found[f"center {place + 1}"] = effects[:, place, None, None] + training + patients + residual
    return found


def _patients(cell: Cell, place: int, n_tables: int, random: np.random.Generator) -> FloatArray:
    """The method × patient part, (tables, 1, patients), mean zero in the population."""
    shape = (n_tables, 1, cell.n_patients)
    if cell.patients == "records":
        differences = recorded()[place % len(recorded())]
        method = np.arange(n_tables)[:, None, None] % len(differences)
        return differences[method, random.integers(differences.shape[1], size=shape)]
    if cell.patients.startswith(RECORDS_OF):
        seen = components(cell.patients.removeprefix(RECORDS_OF)).patients
        return cell.patient * random.choice(seen[place % len(seen)], size=shape)
    if cell.patients == "skewed":
        return cell.patient * (SKEW - random.gamma(SKEW, size=shape)) / sqrt(SKEW)
    return cell.patient * random.standard_normal(shape)


def _residual(cell: Cell, place: int, shape: tuple[int, ...], random: np.random.Generator) -> FloatArray:
    """The residual with a standard deviation of 1."""
    if cell.patients.startswith(RECORDS_OF):
        seen = components(cell.patients.removeprefix(RECORDS_OF)).residuals
        return random.choice(seen[place % len(seen)], size=shape)
    return random.standard_normal(shape)


def measure(cell: Cell, n_tables: int = TABLES) -> dict[str, object]:
    """False-positive rate of every kind of interval, and of p < 0.05; power and mean half width of the studentised one."""
    random = numpy_generator(0, "calibration", json.dumps(cell.identity(), sort_keys=True))
    wrong = dict.fromkeys(KINDS, 0)
    significant = gained = 0
    width = 0.0
    for batch in range(n_tables // BATCH):
        differences = simulate(cell, BATCH, random)
        weights = resampling_weights({center: array.shape[1:] for center, array in differences.items()}, seed=batch)
        result = bootstrap(differences, weights)
        for kind in KINDS:
            low, high = intervals(result, kind=kind)
            wrong[kind] += int(((low > 0) | (high < 0)).sum())
            if kind == "studentised":
                gained += int((low + GAIN > 0).sum())
                width += float(((high - low) / 2).sum())
        significant += int((p_values(result) < 1 - LEVEL).sum())
    return {
        **{kind: round(count / n_tables, 5) for kind, count in wrong.items()},
        "p_below_0.05": round(significant / n_tables, 5),
        "power": round(gained / n_tables, 5),
        "half_width": round(width / n_tables, 3),
    }


TIER_METHODS = 10
TIER_TABLES = 2000
TIERS = {
    "study": "tiers",
    "procedure": PROCEDURE,
    "tables": TIER_TABLES,
    "methods": TIER_METHODS,
    "seed": 3,
    "patient": 18,
    "residual": 12,
}


def measure_tiers() -> dict[str, object]:
    """How often equal methods are not all in the first tier."""
    random = numpy_generator(0, "calibration", "tiers")
    cell = Cell(name="typical", seed=3 / sqrt(2), patient=18 / sqrt(2), residual=12 / sqrt(2))
    split = 0
    for index in range(TIER_TABLES):
        table = ScoreTable(
            metric="dsc",
            higher_is_better=True,
            methods=tuple(f"method {place}" for place in range(TIER_METHODS)),
            seeds=tuple(range(cell.n_seeds)),
            values=simulate(cell, TIER_METHODS, random),
        )
        shapes = {center: array.shape[1:] for center, array in table.values.items()}
        weights = resampling_weights(shapes, seed=index // BATCH)
        split += int((tiers(table.means(), simultaneous(table, weights=weights).differs) > 1).any())
    return {"split": round(split / TIER_TABLES, 5)}


def read() -> list[dict[str, object]]:
    """All records so far."""
    return [json.loads(line) for line in RECORDS.read_text(encoding="utf-8").splitlines()] if RECORDS.is_file() else []


def record_of(identity: dict[str, object]) -> dict[str, object] | None:
    """The record of that identity, once it is finished."""
    return next((one for one in read() if all(one.get(key) == value for key, value in identity.items())), None)


def append(record: dict[str, object]) -> None:
    RECORDS.parent.mkdir(parents=True, exist_ok=True)
    with RECORDS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def run() -> None:
    """Every cell without a record."""
    for cell in cells():
        if record_of(cell.identity()) is None:
            found = measure(cell)
            append({**cell.identity(), **found})
            print(f"{cell.name}, {cell.n_patients} patients, {cell.n_seeds} seeds: {found}", flush=True)
    if record_of(TIERS) is None:
        append({**TIERS, **measure_tiers()})


def _percent(value: object) -> str:
    return f"{100 * float(str(value)):.1f}"


def _sds(cell: Cell) -> str:
    more = f", one center's seed part ×{cell.loud:g}" if cell.loud != 1 else ""
    more += f", {100 * COLLAPSING:g} % of trainings lose {cell.collapse:g} points" if cell.collapse else ""
    return f"{cell.seed:g} / {cell.patient:g} / {cell.residual:g}{more}"


def finished() -> dict[Cell, dict[str, object]]:
    """The recorded cells in the order of the grid; of records that differ in their figures only, the last."""
    names = [field.name for field in fields(Cell)]
    found: dict[tuple[object, ...], tuple[Cell, dict[str, object]]] = {}
    for record in read():
        if record.get("procedure") == PROCEDURE and "study" not in record:
            cell = Cell(**{name: record[name] for name in names})  # type: ignore[arg-type]
            found[cell.name, cell.n_seeds, cell.n_patients] = (cell, record)
    return dict(found.values())


def grid_lines(n_seeds: int) -> list[str]:
    """The grid with that many seeds: a line per profile, wrong in % of tables by kind of interval, and power in %."""
    lines = [
        f"| profile | seed / patient / residual sd | patients | {' | '.join(KINDS)} | power |",
        f"|---|---|---:|{'---:|' * (len(KINDS) + 1)}",
    ]
    for cell, found in finished().items():
        if cell.n_seeds == n_seeds and cell.n_centers == 3 and not cell.new_centers:
            numbers = " | ".join(_percent(found[key]) for key in (*KINDS, "power"))
            lines.append(f"| {cell.name} | {_sds(cell)} | {cell.n_patients} | {numbers} |")
    return lines


def summary_lines() -> list[str]:
    """What the grid says: the range of each kind of interval, the conservative cells, the tiers."""
    misread = [cell for cell in finished() if cell.new_centers and cell.n_centers < CENTERS_RESAMPLED_FROM]
    every = {cell: found for cell, found in finished().items() if cell not in misread}
    grid = {cell: found for cell, found in every.items() if cell.n_seeds == 5}
    lines = []
    for kind in KINDS:
        rates = {cell: float(str(found[kind])) for cell, found in grid.items()}
        worst = max(rates, key=lambda cell: rates[cell])
        above = sum(rate > LIMIT for rate in rates.values())
        lines.append(
            f"- {kind}: wrong in {_percent(min(rates.values()))} to {_percent(rates[worst])} % with five seeds; most often in "
            f"“{worst.name}” with {worst.n_patients} patients; above {100 * LIMIT:g} % in {above} of {len(rates)} cells"
        )
    bound = f"{100 * CONSERVATIVE:g} %"
    for n_seeds, words in zip(SEEDS, ("five seeds", "three seeds"), strict=True):
        timid = [
            f"{cell.name}, {cell.n_patients} patients ({_percent(found['studentised'])} %)"
            for cell, found in every.items()
            if cell.n_seeds == n_seeds and float(str(found["studentised"])) < CONSERVATIVE
        ]
        lines.append(
            f"- conservative cells with {words}, the studentised interval wrong in less than {bound}: {'; '.join(timid) or 'none'}"
        )
    tier = record_of(TIERS)
    if tier is not None:
        lines.append(
            f"- tiers: {TIER_METHODS} equal methods (“typical”, five seeds, 67 patients) are not all in one tier in "
            f"{_percent(tier['split'])} % of {TIER_TABLES:,} tables"
        )
    return lines


def report_lines() -> list[str]:
    """The study as Markdown, from the records alone."""
    error = 100 * sqrt((1 - LEVEL) * LEVEL / TABLES)
    lines = [
        f"{TABLES:,} tables per cell, B = {N_RESAMPLES:,}; a rate of 5 % is known to ±{error:.1f} points (one standard deviation).",
        "",
        *summary_lines(),
    ]
    for n_seeds, title in zip(SEEDS, ("Five seeds", "Three seeds (an interval, no p)"), strict=True):
        lines += ["", f"{title}, three fixed centers, wrong and power in %:", "", *grid_lines(n_seeds)]
    lines += [
        "",
        "Other numbers of centers, five seeds, 67 patients per center, studentised:",
        "",
        "| case | seed / patient / residual / center sd | wrong, % | power, % | half width, points |",
        "|---|---|---:|---:|---:|",
    ]
    for cell, found in finished().items():
        if cell.n_centers != 3 or cell.new_centers:
            numbers = (
                f"{_percent(found['studentised'])} | {_percent(found['power'])} | {float(str(found['half_width'])):.1f}"
            )
            lines.append(f"| {cell.name} | {_sds(cell)} / {cell.center:g} | {numbers} |")
    return lines


def write_report() -> None:
    """Put the study between the markers of the page."""
    begin, end = "<!-- calibration:begin -->", "<!-- calibration:end -->"
    before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(end)
    DOCUMENT.write_text("\n".join([before + begin, *report_lines(), end]) + after, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "report"], nargs="?", default="run")
    options = parser.parse_args()
    if options.action == "run":
        run()
    else:
        write_report()
        print("\n".join(report_lines()))


if __name__ == "__main__":
    main()
