"""Command lines that rows are made of and that fill their missing runs."""

import pytest

from dgbench.leaderboard.rows import preset_overrides, retarget


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("dgbench run --method m --heldout A --seed 0", "dgbench run --method m --heldout B --seed 3"),
        ("dgbench run --heldout=A --method m", "dgbench run --method m --heldout B --seed 3"),
        ("dgbench run --seed 0 --set 'x=a b' --heldout A", "dgbench run --set 'x=a b' --heldout B --seed 3"),
    ],
)
def test_retarget(command: str, expected: str) -> None:
    assert retarget(command, "B", 3) == expected


def test_preset_overrides() -> None:
    command = "dgbench run --set preset.width=16 --set lr=1 --set=preset.tta=false"
    assert preset_overrides(command) == ("preset.tta=false", "preset.width=16")
