"""Command lines that rows are made of and that fill their missing runs."""

import pytest

from dgbench.leaderboard.rows import RowKey, baseline_of, preset_overrides, retarget, row_labels


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


def test_the_baseline_is_the_method_as_it_ships() -> None:
    """A record with a setting that the method does not know takes nobody's place."""
    plain = RowKey("erm", 1, "{}", modified=False, overrides=(), imported=False)
    others = [plain._replace(config='{"a": 1}'), plain._replace(devices=2), plain._replace(modified=True)]
    assert baseline_of([*others, plain]) == plain


def test_no_two_rows_have_one_label() -> None:
    plain = RowKey("erm", 1, "{}", modified=False, overrides=(), imported=False)
    keys = {
        plain: "erm",
        plain._replace(modified=True, overrides=("preset.width=16",)): "erm (preset.width=16)",
        plain._replace(modified=True): "erm (modified)",
        plain._replace(imported=True): "erm (imported)",
        plain._replace(devices=2): "erm (2 devices)",
    }
    assert row_labels(keys) == keys
    assert row_labels([plain._replace(imported=True)]) == {plain._replace(imported=True): "erm"}
