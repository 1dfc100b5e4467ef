"""The statistics of the leaderboard against enumeration, closed forms and simulated tables."""

import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain, combinations, product
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from score_tables import CENTERS, random_table, table_of

from dgbench.errors import DgbenchError
from dgbench.leaderboard.ranking import standings
from dgbench.leaderboard.resampling import bootstrap, intervals, p_values, resampling_weights
from dgbench.leaderboard.scores import FloatArray, ScoreTable, score_table
from dgbench.leaderboard.statistics import (
    Comparison,
    Evidence,
    center_note,
    compare,
    effect_size,
    evidence,
    holm,
    smallest_sign_flip_p,
)

ROOT = Path(__file__).parent.parent


def tidy(table: ScoreTable) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"method": method, "center": center, "seed": seed, "case": f"{center}_{i:02d}", "dsc": values[m, s, i]}
            for center, values in table.values.items()
            for m, method in enumerate(table.methods)
            for s, seed in enumerate(table.seeds)
            for i in range(values.shape[2])
        ]
    )


def one(comparisons: tuple[Comparison, ...], method: str) -> Comparison:
    (found,) = (comparison for comparison in comparisons if comparison.method == method)
    return found


# Tidy rows to arrays


def test_rows_become_arrays_in_any_order() -> None:
    table = random_table()
    again = score_table(tidy(table).sample(frac=1, random_state=1), "dsc", higher_is_better=True)
    assert (again.methods, again.seeds, again.centers) == (table.methods, table.seeds, table.centers)
    assert all(np.array_equal(again.values[center], table.values[center]) for center in table.centers)


def test_missing_pair_is_refused_in_one_line() -> None:
    rows = tidy(random_table())
    hole = (rows["method"] == "m2") & (rows["seed"] == 3) & (rows["case"] == "C1_04")
    with pytest.raises(DgbenchError, match=r"m2 has no dsc for C1, seed 3, case C1_04 \(1 such holes\)") as error:
        score_table(rows[~hole], "dsc", higher_is_better=True)
    assert "\n" not in str(error.value)
    with pytest.raises(DgbenchError, match=r"m1 has no dsc for C0, seed 0, case C0_00 \(60 such holes\)"):
        score_table(rows[(rows["method"] != "m1") | (rows["center"] != "C0")], "dsc", higher_is_better=True)


def test_other_tables_that_cannot_be_compared_are_refused() -> None:
    rows = tidy(random_table())
    with pytest.raises(DgbenchError, match="erm, C0, seed 0, case C0_00 is there twice"):
        score_table(pd.concat([rows, rows.head(1)]), "dsc", higher_is_better=True)
    with pytest.raises(DgbenchError, match=r"dsc is undefined for m2, C2, seed 4, case C2_11 \(1 such rows\)"):
        score_table(rows.assign(dsc=[*rows["dsc"][:-1], np.nan]), "dsc", higher_is_better=True)
    with pytest.raises(DgbenchError, match="no column seed, hd95"):
        score_table(rows.drop(columns="seed"), "hd95", higher_is_better=False)
    with pytest.raises(DgbenchError, match="no rows"):
        score_table(rows.head(0), "dsc", higher_is_better=True)
    with pytest.raises(DgbenchError, match=r"no method 'ermm' to compare with \(there are: erm, m1, m2\)"):
        compare(random_table(), "ermm")


# The bootstrap


def enumerated(differences: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """The counts of every possible resample, each once."""
    sizes = {}
    for center, array in differences.items():
        sizes |= {f"{center}/seeds": array.shape[1], f"{center}/patients": array.shape[2]}
    every = product(*(product(range(size), repeat=size) for size in sizes.values()))
    rows = list(every)
    return {
        name: np.array([np.bincount(row[place], minlength=size) for row in rows], dtype=np.float64)
        for place, (name, size) in enumerate(sizes.items())
    }


def test_every_resample_by_hand() -> None:
    """Two seeds, three patients: each of the 4 × 27 resamples from its definition, and the variance of all of them in closed form."""
    array = np.random.default_rng(2).standard_normal((1, 2, 3))
    result = bootstrap({"A": array}, enumerated({"A": array}))
    (d,) = array
    mean, seeds, patients = d.mean(), d.mean(axis=1) - d.mean(), d.mean(axis=0) - d.mean()
    by_hand = [
        mean + np.sqrt(2 / 1) * seeds[list(s)].mean() + np.sqrt(3 / 2) * patients[list(i)].mean()
        for s in product(range(2), repeat=2)
        for i in product(range(3), repeat=3)
    ]
    assert result.draws[:, 0] == pytest.approx(by_hand)
    variance = d.mean(axis=1).var(ddof=1) / 2 + d.mean(axis=0).var(ddof=1) / 3
    assert result.draws.var() == pytest.approx(variance)
    assert result.estimate == pytest.approx([mean])


def test_centers_count_equally_and_vary_independently() -> None:
    random = np.random.default_rng(3)
    differences = {"A": random.standard_normal((1, 2, 2)), "B": random.standard_normal((1, 2, 3))}
    result = bootstrap(differences, enumerated(differences))
    single = [bootstrap({c: a}, enumerated({c: a})).draws.var() for c, a in differences.items()]
    assert result.draws.var() == pytest.approx(sum(single) / 4)
    assert result.estimate == pytest.approx([np.mean([array.mean() for array in differences.values()])])


def test_equal_centers_are_resampled_independently() -> None:
    array = np.random.default_rng(10).standard_normal((1, 5, 10))
    alone, three = bootstrap({"A": array}), bootstrap(dict.fromkeys(CENTERS, array))
    assert three.draws.var() == pytest.approx(alone.draws.var() / 3, rel=0.1)
    assert three.standard_error**2 == pytest.approx(alone.standard_error**2 / 3)


@pytest.mark.parametrize(("seed", "patient", "residual"), [(3.0, 0.0, 0.0), (0.0, 9.0, 0.0), (2.0, 6.0, 9.0)])
def test_bootstrap_variance_is_that_of_the_mean(seed: float, patient: float, residual: float) -> None:
    """Known components. The seed part alone would come out at 4/5 of its variance without its inflation. The residual is counted
    twice among resamples and once in the standard error, which is a little larger than that, being no smaller than either part's."""
    random = np.random.default_rng(4)
    shape = (4000, 5, 10)
    differences = {
        center: seed * random.standard_normal((4000, 5, 1))
        + patient * random.standard_normal((4000, 1, 10))
        + residual * random.standard_normal(shape)
        for center in CENTERS
    }
    weights = resampling_weights(dict.fromkeys(CENTERS, shape[1:]), n_resamples=500)
    result = bootstrap(differences, weights)
    exact = (seed**2 / 5 + patient**2 / 10 + residual**2 / 50) / 3
    assert result.estimate.var() == pytest.approx(exact, rel=0.07)
    assert 0.96 < (result.standard_error**2).mean() / exact < (1.08 if residual else 1.04)
    assert result.draws.var(axis=0).mean() == pytest.approx(exact + residual**2 / 50 / 3, rel=0.06)


def test_what_methods_share_cancels() -> None:
    table = random_table(gain=0.02)
    random = np.random.default_rng(5)
    moved = {c: v + random.standard_normal((1, *v.shape[1:])) for c, v in table.values.items()}
    for before, after in zip(compare(table), compare(table_of(moved)), strict=True):
        assert after.overall.mean == pytest.approx(before.overall.mean)
        assert after.overall.interval == pytest.approx(before.overall.interval)


def test_interval_excludes_zero_exactly_where_p_is_small() -> None:
    random = np.random.default_rng(6)
    differences = {center: random.normal(0.4, 1, (500, 5, 10)) for center in CENTERS}
    result = bootstrap(differences)
    for level in (0.8, 0.95, 0.99):
        low, high = intervals(result, level=level)
        excluded = (low > 0) | (high < 0)
        assert 0 < excluded.sum() < 500
        assert np.array_equal(excluded, p_values(result) <= 1 - level)


def test_percentile_and_basic_intervals_mirror_each_other() -> None:
    result = bootstrap({center: np.random.default_rng(7).exponential(size=(4, 5, 6)) for center in CENTERS})
    low, high = intervals(result, kind="percentile")
    mirrored = intervals(result, kind="basic")
    assert mirrored[0] == pytest.approx(2 * result.estimate - high)
    assert mirrored[1] == pytest.approx(2 * result.estimate - low)
    assert low == pytest.approx(np.quantile(result.draws, 0.025, axis=0))


def test_equal_seeds_equal_results() -> None:
    table = random_table()
    assert compare(table) == compare(table)
    assert standings(table) == standings(table)
    assert compare(table) != compare(table, seed=1)


def test_a_further_method_changes_no_other_interval() -> None:
    table = random_table(methods=4)
    fewer = table_of({center: values[:3] for center, values in table.values.items()})
    for method in ("m1", "m2"):
        many, few = one(compare(table), method), one(compare(fewer), method)
        assert many.overall.interval == pytest.approx(few.overall.interval)
        assert many.p == pytest.approx(few.p)


def test_centers_are_resampled_from_six_up() -> None:
    shapes = {f"C{place}": (5, 8) for place in range(6)}
    assert set(resampling_weights(shapes)) == {"centers"}
    assert set(resampling_weights({name: shapes[name] for name in list(shapes)[:5]})) == {
        f"C{place}/{part}" for place in range(5) for part in ("seeds", "patients")
    }
    differences = {f"C{place}": np.full((1, 5, 8), float(place)) for place in range(6)}
    fixed = bootstrap({name: differences[name] for name in list(differences)[:5]})
    assert fixed.standard_error == pytest.approx([0])
    assert bootstrap(differences).standard_error == pytest.approx([np.std(range(6), ddof=1) / 6**0.5])
    assert bootstrap(differences).draws.var() == pytest.approx(np.var(range(6), ddof=1) / 6, rel=0.1)


def test_unknown_spread_is_refused() -> None:
    with pytest.raises(DgbenchError, match="A has one seed only"):
        bootstrap({"A": np.zeros((1, 1, 5))})
    with pytest.raises(DgbenchError, match="A has one case only"):
        bootstrap({"A": np.zeros((1, 5, 1))})


# Differences to the baseline


def test_seeds_decide_what_is_printed() -> None:
    assert [evidence(n).value for n in (1, 2, 3, 4, 5, 9)] == ["smoke", "smoke", "row", "row", "claim", "claim"]
    printed = {
        n: [
            (
                c.overall.interval is not None,
                c.centers["C0"].interval is not None,
                c.p is not None,
                c.p_holm is not None,
            )
            for c in compare(random_table(seeds=n))
        ]
        for n in (1, 2, 3, 4, 5)
    }
    assert printed == {n: [(n >= 3, n >= 3, n >= 5, n >= 5)] * 2 for n in printed}
    assert {c.evidence for c in compare(random_table(seeds=1))} == {Evidence.SMOKE}
    assert {(s.rank_interval, s.p_best, s.tier) for s in standings(random_table(seeds=2))} == {(None, None, None)}


def test_no_difference_and_a_constant_one() -> None:
    base = random_table(methods=1).values
    same = compare(table_of({c: np.concatenate([v, v, v + 0.25]) for c, v in base.items()}))
    assert one(same, "m1").overall.interval == (0, 0)
    assert (one(same, "m1").p, one(same, "m1").p_holm, one(same, "m1").effect_size) == (1, 1, 0)
    constant = one(same, "m2")
    assert constant.overall.interval == pytest.approx((0.25, 0.25))
    assert constant.p == pytest.approx(1 / 2001)
    assert constant.p_holm == pytest.approx(2 / 2001)


def test_differences_are_per_center_and_signed() -> None:
    table = random_table(gain=0.1)
    found = one(compare(table), "m2")
    means = table.center_means()
    assert found.overall.mean == pytest.approx((means[2] - means[0]).mean())
    assert {c: d.mean for c, d in found.centers.items()} == pytest.approx(
        dict(zip(table.centers, means[2] - means[0], strict=True))
    )
    assert found.overall.interval is not None
    assert found.overall.interval[0] > 0
    reverse = one(compare(table, "m2"), "erm")
    assert reverse.overall.interval == pytest.approx((-found.overall.interval[1], -found.overall.interval[0]))
    assert compare(random_table(methods=1)) == ()


def test_holm_by_hand_and_as_a_closed_test() -> None:
    """Holm's procedure is the closed test of Bonferroni tests: p of i is the largest Bonferroni p over all sets with i."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1, 1])
    assert holm([]).size == 0
    p = np.random.default_rng(8).uniform(0, 0.4, 6)
    sets = list(chain.from_iterable(combinations(range(6), size) for size in range(1, 7)))
    closed = [min(1, max(len(s) * p[list(s)].min() for s in sets if i in s)) for i in range(6)]
    assert holm(p) == pytest.approx(closed)
    with pytest.raises(DgbenchError, match=r"lie in \[0, 1\]"):
        holm([0.2, np.nan])


def test_effect_size_by_hand() -> None:
    """Patients' differences, seeds averaged: 1, 2, 3 in A (mean 2, sd 1) and −1, 1 in B (mean 0)."""
    a = np.array([[[0.0, 3.0, 3.0], [2.0, 1.0, 3.0]]])
    assert effect_size({"A": a}) == pytest.approx([2])
    assert effect_size({"A": a, "B": np.array([[[-1.0, 1.0], [-1.0, 1.0]]])}) == pytest.approx([1])
    assert effect_size({"A": np.zeros((1, 2, 3))}) == pytest.approx([0])
    assert np.isnan(effect_size({"A": np.full((1, 2, 3), 0.1)})).all()
    assert np.isnan(effect_size({"A": np.ones((1, 2, 1))})).all()


def test_sign_flips_over_three_centers_end_at_a_quarter() -> None:
    for n in (1, 3, 6):
        agreeing = np.linspace(1, 2, n)
        flipped = [abs(np.dot(signs, agreeing)) for signs in product((-1, 1), repeat=n)]
        assert smallest_sign_flip_p(n) == np.mean([value >= agreeing.sum() - 1e-12 for value in flipped])
    assert smallest_sign_flip_p(3) == 0.25
    assert "no claim about new ones" in center_note(3)
    assert "p = 0.25" in center_note(3)
    assert "no claim" not in center_note(6)


# The study


@pytest.fixture(scope="module")
def study() -> ModuleType:
    spec = importlib.util.spec_from_file_location("calibration", ROOT / "benchmarks" / "calibration.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["seeds only", "typical", "skewed patients only"])
def test_intervals_are_calibrated(study: ModuleType, name: str) -> None:
    """Eight hundred tables: ±1.5 points around the rate are two standard deviations."""
    (profile,) = (profile for profile in study.PROFILES if profile.name == name)
    found = study.measure(profile, n_tables=800)
    assert 0.015 <= found["studentised"] <= 0.07
    assert found["p_below_0.05"] == found["studentised"]
    assert found["power"] > 0.3


def test_page_shows_what_the_records_say(study: ModuleType) -> None:
    text = study.DOCUMENT.read_text(encoding="utf-8")
    block = text.partition("<!-- calibration:begin -->\n")[2].partition("\n<!-- calibration:end -->")[0]
    assert block == "\n".join(study.report_lines())
    rates = [found["studentised"] for cell, found in study.finished().items() if cell.n_seeds == 5]
    assert len(rates) > 30
    assert sorted(rates)[-2] <= study.LIMIT, "only the misread cell may be above"


def test_from_six_centers_up_one_may_have_a_single_case() -> None:
    """Centers are resampled: only the interval of that center alone needs cases."""
    table = random_table(centers=7)
    values = {center: scores[:, :, :1] if center == "C3" else scores for center, scores in table.values.items()}
    for one in compare(replace(table, values=values)):
        assert one.overall.interval is not None
        assert [center for center, difference in one.centers.items() if difference.interval is None] == ["C3"]
