"""What a protocol file may say: contradictions are refused when it is read, in one line that names the place."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dgbench.errors import DgbenchError
from dgbench.protocol import load_protocol, protocol_folder, protocol_names
from dgbench.yaml_text import parse_value

Tree = dict[str, Any]
BAD_PROTOCOLS: dict[str, tuple[Callable[[Tree], object], str]] = {
    "two channels in": (
        lambda tree: tree["task"].update(in_channels=2),
        "in_channels is 2, but an image file holds one",
    ),
    "two channels out": (
        lambda tree: tree["task"].update(out_channels=2),
        "out_channels is 2, .* use a stage per struc",
    ),
    "shared stages of two recipes": (
        lambda tree: tree["stages"]["pancreas-fine"].update(recipe="randconv"),
        r"shared stages have different recipes \(pancreas-coarse erm, pancreas-fine randconv\)",
    ),
    "a margin too short": (
        lambda tree: tree["stages"]["tumor-fine"]["roi"].update(margin_mm=[20, 20]),
        r"stage 'tumor-fine': margin \[20.0, 20.0\] has 2 entries for 3 dimensions",
    ),
    "a margin too long": (
        lambda tree: tree["stages"]["tumor-fine"]["roi"].update(mask_margin_mm=[7.5, 20, 20, 20]),
        "stage 'tumor-fine': margin .* has 4 entries for 3 dimensions",
    ),
    "a negative margin": (
        lambda tree: tree["stages"]["tumor-fine"]["roi"].update(mask_margin_mm=[7.5, -20, 20]),
        "stages.tumor-fine.roi.mask_margin_mm.1: Input should be greater than or equal to 0",
    ),
    "no setting to rank": (
        lambda tree: tree["stages"]["tumor-fine"].update(code="T"),
        r"stages have the codes \[.*'T'\]: the last one must be 'F', F-Seg is the setting that is ranked",
    ),
    "a center twice": (
        lambda tree: tree.update(centers=["MSD", "RENJI", "RENJI"]),
        "named more than once among centers and support_centers: RENJI",
    ),
    "a center that supports": (
        lambda tree: tree.update(support_centers=["NIH", "MSD"]),
        "named more than once among centers and support_centers: MSD",
    ),
    "one value for two labels": (
        lambda tree: tree["labels"].update(tumor=1),
        "labels {'pancreas': 1, 'tumor': 1} must be different numbers from 1 to 255",
    ),
    "a label of nine bits": (lambda tree: tree["labels"].update(duct=300), "must be different numbers from 1 to 255"),
    "an infinite learning rate": (
        lambda tree: tree["presets"]["tiny"]["stages"]["tumor-fine"].update(lr=float("inf")),
        "presets.tiny.stages.tumor-fine.lr: Input should be a finite number",
    ),
    "a window from NaN": (
        lambda tree: tree["task"]["intensity"].update(low=float("nan")),
        "task.intensity.window.low: Input should be a finite number",
    ),
    "an infinite margin": (
        lambda tree: tree["stages"]["tumor-fine"]["roi"].update(margin_mm=[7.5, float("inf"), 20]),
        "stages.tumor-fine.roi.margin_mm.1: Input should be a finite number",
    ),
}


@pytest.mark.parametrize("name", BAD_PROTOCOLS)
def test_a_contradiction_is_refused_when_the_protocol_is_read(name: str, tmp_path: Path) -> None:
    change, message = BAD_PROTOCOLS[name]
    tree = yaml.safe_load((protocol_folder() / "phantom.yaml").read_text(encoding="utf-8"))
    change(tree)
    path = tmp_path / "changed.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    with pytest.raises(DgbenchError, match=message) as error:
        load_protocol(str(path))
    assert str(error.value).startswith("protocol changed.yaml: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", r"protocol bad.yaml: .*bad.yaml is not text in UTF-8 \(invalid start byte at byte 0\)"),
        (b"name: [phantom", "protocol bad.yaml: not valid YAML: "),
        (b"name: 2026-02-31", "protocol bad.yaml: not valid YAML: day is out of range for month"),
        (b"- 1", "protocol bad.yaml: value: Input should be a valid dictionary"),
    ],
)
def test_a_file_that_is_no_protocol_is_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(content)
    with pytest.raises(DgbenchError, match=message) as error:
        load_protocol(str(tmp_path / "bad.yaml"))
    assert "\n" not in str(error.value)


def test_no_override_makes_a_number_infinite() -> None:
    with pytest.raises(DgbenchError, match=r"stages.tumor-fine.lr: Input should be a finite number"):
        load_protocol("phantom").resolve("tiny", {"stages.tumor-fine.lr": ".inf"})


def test_a_value_that_yaml_takes_for_a_date_that_is_none_is_refused() -> None:
    with pytest.raises(DgbenchError, match="cannot read the value '2026-02-31': day is out of range"):
        parse_value("2026-02-31")


@pytest.mark.parametrize("name", protocol_names())
def test_the_shipped_protocols_are_sound(name: str) -> None:
    assert load_protocol(name).name == name
