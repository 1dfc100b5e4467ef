"""Curves of shift response as a table and a figure, from made-up scores; ``test_shift.py`` runs the command that measures them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from leaderboard_runs import case_row

from dgbench.errors import DgbenchError
from dgbench.leaderboard import policies
from dgbench.leaderboard.figures import response as figure
from dgbench.leaderboard.figures.style import plain_settings, save
from dgbench.leaderboard.response import Response, gather, to_json, to_sheet

POLICY = policies.default(assd_constant_mm=40, hd95_constant_mm=100)
Scores = Mapping[tuple[str, str, int, float], Sequence[float]]


def table(scores: Scores, ceiling: float = 0.9, empty: Sequence[str] = ()) -> Response:
    """A response from the DSC of cases 1, 2, … per (method, center, seed, strength); ``empty`` names cases without an annotated lesion at
    the greatest strength."""
    greatest = max(strength for *_, strength in scores)
    rows = []
    for (method, center, seed, strength), values in scores.items():
        for index, dsc in enumerate(values, start=1):
            row = {**case_row(center, index, dsc), "method": method, "seed": seed, "strength": strength}
            gone = {"empty_reference": True, "dsc": float("nan"), "n_lesions_reference": 0}
            rows.append({**row, **(gone if row["case"] in empty and strength == greatest else {})})
    frame = pd.DataFrame(rows)
    told = frame[["case", "center", "strength"]].drop_duplicates().assign(ceiling=ceiling)
    return gather(frame, told, axis="noise", neutral=0.25, policy=POLICY, notes=["the axis"], heading=["what was run"])


def falling(methods: Sequence[str] = ("erm",), centers: Sequence[str] = ("MSD", "RENJI"), seeds: int = 1) -> Scores:
    """Scores that fall from 0.8 at strength 0.25 by 0.1 per method, center, and a bit per case and seed."""
    return {
        (method, center, seed, strength): [
            0.8
            - 0.1 * m
            - 0.1 * c
            - (strength - 0.25) * (0.2 * (m + 1) + 0.1 * case)
            - 0.02 * seed * (1 + strength * case)
            for case in range(3)
        ]
        for m, method in enumerate(methods)
        for c, center in enumerate(centers)
        for seed in range(seeds)
        for strength in (0.25, 0.0, 1.25)
    }


def test_means_are_of_centers_and_changes_are_paired() -> None:
    response = table(falling(("zeta", "erm")))
    assert response.methods == ("zeta", "erm"), "in the order in which they were named"
    assert response.strengths == (0, 0.25, 1.25)
    assert response.curve("zeta", "RENJI")[1] == pytest.approx(0.7)
    assert response.curve("zeta")[1] == pytest.approx(0.75)
    assert response.change("zeta") == pytest.approx([0.075, 0, -0.3])
    assert response.change("erm") == pytest.approx([0.125, 0, -0.5])
    assert response.interval("erm") is None
    content = to_json(response)
    assert content["methods"][1]["centers"]["MSD"] == pytest.approx(response.curve("erm", "MSD").tolist())
    assert content["ceiling"]["mean"] == pytest.approx([0.9] * 3)
    json.dumps(content, allow_nan=False)


def test_three_seeds_give_an_interval_and_a_spread() -> None:
    response = table(falling(seeds=3))
    interval = response.interval("erm")
    assert interval is not None
    low, high = interval
    assert (low <= response.change("erm") + 1e-12).all()
    assert (response.change("erm") <= high + 1e-12).all()
    assert low[1] == high[1] == 0
    sheet = to_sheet(response)
    assert "95 % interval" in " ".join(sheet.heading)
    assert sheet.rows[1][1:3] == ("72.5 ± 2.5", "")
    assert sheet.rows[2][2].startswith("-32.0 [")


@pytest.mark.parametrize(
    ("centers", "words"), [(5, "seeds and patients, these centers only"), (6, "centers, which are resampled")]
)
def test_the_interval_says_what_it_is_over(centers: int, words: str) -> None:
    """From six centers up the bootstrap resamples centers."""
    response = table(falling(centers=[f"c{number}" for number in range(centers)], seeds=3))
    assert f"95 % interval over {words};" in " ".join(to_sheet(response).heading)


def test_the_table_says_what_it_is_of() -> None:
    sheet = to_sheet(table(falling(("erm", "randconv"))))
    assert sheet.heading[0].startswith("PHANTOM DATA")
    assert sheet.columns == ("strength", "erm", "erm: change", "randconv", "randconv: change", "ceiling")
    assert sheet.rows[1] == ("0.25 (training)", "75.0", "", "65.0", "", "90.0")
    assert sheet.rows[2][2] == "-30.0"
    assert "mean over the held-out centers MSD, RENJI" in sheet.heading[1]
    assert sheet.footer == ("the axis",)
    assert any("seed 0 (smoke: " in line for line in sheet.heading)


def test_a_case_without_annotated_lesion_is_left_out_at_every_strength() -> None:
    whole, part = table(falling()), table(falling(), empty=["MSD/MSD_0003"])
    assert part.counts == {"MSD": 2, "RENJI": 3}
    assert part.excluded == {"MSD": 1, "RENJI": 0}
    assert part.curve("erm", "MSD")[0] == pytest.approx(whole.values["erm"]["MSD"][0, :, :2].mean())
    assert any("left out at every strength" in line and "MSD 1" in line for line in to_sheet(part).heading)
    with pytest.raises(DgbenchError, match="MSD: no case has an annotated lesion at every strength of noise"):
        table(falling(), empty=[f"MSD/MSD_000{number}" for number in (1, 2, 3)])


def test_methods_without_the_same_cases_are_refused() -> None:
    scores = dict(falling(("erm", "randconv")))
    scores["randconv", "MSD", 0, 0.0] = scores["randconv", "MSD", 0, 0.0][:2]
    with pytest.raises(DgbenchError, match="randconv at MSD: 1 values are missing"):
        table(scores)


@pytest.mark.parametrize(("centers", "seeds", "panels"), [(("MSD", "RENJI", "RMYY"), 3, 4), (("MSD",), 1, 1)])
def test_the_figure_has_a_panel_per_center_and_the_mean(
    centers: Sequence[str], seeds: int, panels: int, tmp_path: Path
) -> None:
    methods = ("erm", "randconv")
    response = table(falling(methods, centers, seeds))
    with plain_settings():
        sheet = figure.draw(response)
        for name in ("a", "b"):
            save(sheet.figure, tmp_path / f"{name}.png", "png", "shift")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    axes = sheet.figure.axes
    titles = [axis.get_title() for axis in axes]
    assert titles == [*(f"held-out {name}" for name in centers), "mean over centers"][:panels]
    words = [text.get_text() for text in sheet.figure.texts]
    assert words[0].startswith("PHANTOM DATA")
    assert axes[0].get_ylabel() == "DSC (points)"
    assert "strength of axis noise" in axes[0].get_xlabel()
    lines = [line for line in axes[-1].lines if line.get_marker() not in ("None", None, "")]
    expected = [100 * response.curve(method, centers[0] if panels == 1 else None) for method in methods]
    assert [np.asarray(line.get_ydata()).tolist() for line in lines] == [
        pytest.approx(list(curve)) for curve in expected
    ]
    upright = [line for line in axes[-1].lines if np.array_equal(np.asarray(line.get_xdata()), [0.25, 0.25])]
    assert len(upright) == 1, "the strength of training"
    assert any(np.asarray(line.get_ydata()).tolist() == pytest.approx([90.0] * 3) for line in axes[-1].lines), (
        "the ceiling"
    )
    legend = [text.get_text() for text in sheet.figure.legends[0].get_texts()]
    assert legend == [*methods, "annotation ceiling", "strength of training, 0.25"]
