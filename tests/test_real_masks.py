"""Masks of real networks through the import, against the Dice values that came with them, and the committed page of them."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

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


@pytest.mark.slow
def test_all_networks_give_the_committed_page(script: Any, real_data: Path, tmp_path: Path) -> None:
    masks = real_data / "msd_pancreas_masks"
    networks = script.read_index(masks)["methods"]
    assert len(networks) == 33
    compiled = script.import_networks(masks, tmp_path, networks)
    check(script, masks, compiled, networks)
    assert script.page(masks, compiled) == script.PAGE.read_text(encoding="utf-8")
