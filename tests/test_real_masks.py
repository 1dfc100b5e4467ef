"""Masks of real networks through the import, against the Dice values that came with them, and the committed page of them."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dgbench.leaderboard.ranking import standings
from dgbench.leaderboard.scores import score_table
from dgbench.leaderboard.statistics import compare

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "mask_table.py"
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("mask_table", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(script: Any, masks: Path, compiled: Any, networks: list[str]) -> None:
    """One unranked, imported row per network, with the mean Dice of its twelve cases."""
    (table,) = compiled.tables
    assert {row.label for row in table.rows} == set(networks)
    assert all(row.imported and row.complete and row.rank is None for row in table.rows)
    assert table.n_cases == {"MSD": 12}
    assert max(script.differences(masks, table).values()) < TOLERANCE


def test_networks_have_the_dice_that_came_with_them(script: Any, real_data: Path, tmp_path: Path) -> None:
    masks, networks = real_data / "msd_pancreas_masks", ["2-DiceCE", "WCE"]
    check(script, masks, script.import_networks(masks, tmp_path, networks), networks)


def test_statistics_of_real_scores_agree_with_textbook_ones(script: Any, real_data: Path) -> None:
    """33 networks on 12 patients, each as five trainings that happen to agree: the two-way bootstrap then resamples patients alone."""
    dice = script.read_index(real_data / "msd_pancreas_masks")["dice"]
    rows = [
        {"method": network, "center": "MSD", "seed": seed, "case": case, "dsc": value}
        for network, cases in dice.items()
        for case, value in cases.items()
        for seed in range(5)
    ]
    scores = score_table(pd.DataFrame(rows), "dsc", higher_is_better=True)
    patients = {network: np.array([dice[network][case] for case in sorted(dice[network])]) for network in dice}
    assert scores.values["MSD"].shape == (33, 5, 12)
    found = {one.method: one for one in compare(scores, "CE")}
    textbook = {network: stats.ttest_rel(patients[network], patients["CE"]) for network in found}
    widths = []
    for network, test in textbook.items():
        one, t_interval = found[network], test.confidence_interval()
        assert one.overall.mean == pytest.approx(np.mean(patients[network] - patients["CE"]))
        assert one.overall.interval is not None
        low, high = one.overall.interval
        widths.append((high - low) / (t_interval.high - t_interval.low))
    assert np.median(widths) == pytest.approx(1, abs=0.05)
    assert 0.9 < min(widths) <= max(widths) < 1.5, "wider where twelve differences are skewed"
    p = [one.p for one in found.values()]
    assert stats.spearmanr(p, [test.pvalue for test in textbook.values()]).statistic > 0.98
    order = stats.rankdata([-values.mean().round(9) for values in patients.values()], method="min")
    places = {one.method: one for one in standings(scores)}
    assert [places[network].rank for network in patients] == order.tolist()
    assert sum(one.p_best or 0 for one in places.values()) == pytest.approx(1)
    assert all(
        one.rank_interval and one.rank_interval[0] <= one.rank <= one.rank_interval[1] for one in places.values()
    )
    best, worst = (min(places.values(), key=lambda one: sign * one.rank) for sign in (1, -1))
    assert best.tier == 1
    assert worst.tier is not None
    assert worst.tier > 1


@pytest.mark.slow
def test_all_networks_give_the_committed_page(script: Any, real_data: Path, tmp_path: Path) -> None:
    masks = real_data / "msd_pancreas_masks"
    networks = script.read_index(masks)["methods"]
    assert len(networks) == 33
    compiled = script.import_networks(masks, tmp_path, networks)
    check(script, masks, compiled, networks)
    assert script.page(masks, compiled) == script.PAGE.read_text(encoding="utf-8")
