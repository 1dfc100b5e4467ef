"""A table of 33 real networks: their masks of 12 cases, imported as any system's are, and compared with the Dice that came with them.

    python benchmarks/mask_table.py [--masks DIR] [--out leaderboards/msd-pancreas-masks.md]

DIR holds packed masks cropped to a ROI and an index.json with shapes, spacings and a reference Dice per network and case, rounded to
six decimals (modaresimr/evalseg). Each network becomes a prediction set; the table is compiled from their run folders. Without DIR
nothing is done.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgbench.evaluation.imported import PredictedCase, import_predictions
from dgbench.leaderboard.compile import compile_runs
from dgbench.leaderboard.results import Compiled, Table
from dgbench.leaderboard.sheets import to_markdown
from dgbench.leaderboard.tables import leaderboard_sheets
from dgbench.protocol import load_protocol

PROTOCOL = Path(__file__).with_name("msd_pancreas_masks.yaml")
MASKS = Path(__file__).parents[2] / "shared" / "data" / "msd_pancreas_masks"
PAGE = Path(__file__).parents[1] / "leaderboards" / "msd-pancreas-masks.md"
CENTER, PRESET = "MSD", "masks"
COMMAND = "python benchmarks/mask_table.py --masks DIR"


def read_index(masks: Path) -> dict[str, Any]:
    """Cases with shape, ROI and spacing (x,y,z), names of the networks, reference Dice by network and case."""
    index: dict[str, Any] = json.loads((masks / "index.json").read_text(encoding="utf-8"))
    return index


def cases_of(masks: Path, network: str) -> Iterator[PredictedCase]:
    """Every case as the importer takes it, (z,y,x)."""
    for case in read_index(masks)["cases"]:
        with np.load(masks / f"{case['case']}.npz") as packed:
            predicted, reference = (_unpack(packed[key], case["roi"]) for key in (f"pred__{network}", "gt"))
        yield f"{CENTER}/{case['case']}", predicted, reference, tuple(case["spacing"][::-1])


def _unpack(packed: NDArray[np.uint8], roi: list[int]) -> NDArray[np.uint8]:
    return np.unpackbits(packed)[: np.prod(roi)].reshape(roi).transpose(2, 1, 0)


def import_networks(masks: Path, runs: Path, networks: Sequence[str]) -> Compiled:
    """Each network as a prediction set under ``runs``, and the table of what is there."""
    protocol = load_protocol(str(PROTOCOL))
    for network in networks:
        import_predictions(
            cases_of(masks, network), name=network, heldout=CENTER, protocol=protocol, preset=PRESET, runs=runs
        )
    return compile_runs(runs, protocol=protocol)


def differences(masks: Path, table: Table) -> dict[str, float]:
    """By network: how far the mean DSC of its row is from the mean of the Dice values in index.json."""
    dice = read_index(masks)["dice"]
    return {row.label: abs(row.mean["dsc"].mean - float(np.mean(list(dice[row.label].values())))) for row in table.rows}


def page(masks: Path, compiled: Compiled) -> str:
    """The page in Markdown."""
    largest = max(differences(masks, compiled.tables[0]).values())
    lines = (
        "# Patient data: masks of 33 networks on 12 cases",
        "Pancreas masks of the Medical Segmentation Decathlon (CC BY-SA 4.0) as collected by modaresimr/evalseg: a check of the import and "
        f"of the metrics on real masks. Made by `{COMMAND}`. Largest difference between a mean DSC below and the mean of the Dice values "
        f"that came with the masks (six decimals): {largest:.1e}.",
        to_markdown(leaderboard_sheets(compiled)),
    )
    return "\n\n".join(lines)


def main() -> None:
    """Import, compile, compare, write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--masks", type=Path, default=MASKS, help="folder with index.json and the packed masks")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page")
    arguments = parser.parse_args()
    if not (arguments.masks / "index.json").is_file():
        print(f"no masks in {arguments.masks}: nothing done")
        return
    with tempfile.TemporaryDirectory() as folder:
        compiled = import_networks(arguments.masks, Path(folder), read_index(arguments.masks)["methods"])
    arguments.out.write_text(page(arguments.masks, compiled), encoding="utf-8")
    print(f"{len(compiled.tables[0].rows)} networks: {arguments.out}")


if __name__ == "__main__":
    main()
