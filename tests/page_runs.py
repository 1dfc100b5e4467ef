"""A leaderboard of fake runs with all that a page has to show: five seeds, holes, hostile text, an overlay."""

import zlib
from pathlib import Path

import numpy as np
from leaderboard_runs import CENTERS, add_run, case_row

from dgbench.store.slices import CaseSlice, slice_file

REASON = "out of <b>memory</b> & </td><script>alert(1)</script> \x1b[2J"
TITLE = "<img src=x onerror=alert(2)>"
LIFT = {"erm": 0.0, "randconv": 0.03, "mixstyle": -0.02, "dualtask": 0.08}
CASES = 6


def write_board(root: Path, *, seeds: int = 5, slices: bool = True) -> Path:
    """erm, randconv, mixstyle and dualtask with ``seeds`` seeds; a control row, a row with a failed run, and one that is not installed."""
    for method, lift in LIFT.items():
        for center in CENTERS:
            for seed in range(seeds):
                _run(root, method, center, seed, lift)
    for center in CENTERS:
        for seed in range(seeds):
            _run(root, "erm_long", center, seed, 0.05, draws_factor=3)
    _run(root, "cutout", "MSD", 0, 0.01)
    add_run(root, "cutout", "RENJI", 0, state="failed", reason=REASON)
    _run(root, "foreign.one", "MSD", 0, 0.0, config={"note": TITLE})
    if slices:
        add_slice(next((root / "phantom" / "MSD" / "erm").glob("seed0-*")), "MSD/MSD_0000")
    return root


def _run(root: Path, method: str, center: str, seed: int, lift: float, **changes: object) -> None:
    rng = np.random.default_rng(zlib.crc32(f"{method} {center} {seed}".encode()))
    patients = np.random.default_rng(CENTERS.index(center)).normal(0.5 + 0.05 * CENTERS.index(center), 0.1, CASES)
    values = np.clip(patients + lift + rng.normal(0, 0.01) + rng.normal(0, 0.02, CASES), 0.01, 0.99)
    cases = [case_row(center, index, float(value)) for index, value in enumerate(values)]
    add_run(root, method, center, seed, cases=cases, protocol={"converged": method != "mixstyle"}, **changes)


def add_slice(run: Path, case: str) -> None:
    """A slice with a round lesion in the run folder ``run``."""
    y, x = np.mgrid[:40, :50]
    tumor = (y - 20) ** 2 + (x - 25) ** 2 < 36
    pancreas = (abs(y - 20) < 10) & (abs(x - 25) < 18)
    path = slice_file(run, case)
    path.parent.mkdir(parents=True, exist_ok=True)
    CaseSlice(
        case=case,
        image=np.where(pancreas, 80.0, 0.0) + 5 * ((y + x) % 7),
        reference_pancreas=pancreas,
        reference_tumor=tumor,
        pancreas=pancreas,
        tumor_coarse=np.roll(tumor, 2, 0),
        tumor_fine=np.roll(tumor, 1, 1),
        spacing=(1.0, 1.0),
        slice_index=3,
        n_slices=9,
        dsc={"pancreas": 1.0, "coarse": 0.6, "fine": 0.8},
    ).save(path)
