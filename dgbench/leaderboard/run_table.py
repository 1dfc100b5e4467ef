"""What one run achieved, as a sheet: a line per setting."""

import math
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

from dgbench.errors import DgbenchError
from dgbench.leaderboard import policies
from dgbench.leaderboard.records import OFFICIAL
from dgbench.leaderboard.sheets import BANNERS, NOTES, UNDEFINED, Sheet, describe_policy
from dgbench.leaderboard.thresholds import OFFICIAL_THRESHOLD
from dgbench.protocol import Protocol
from dgbench.store.folder import RunSpec

if TYPE_CHECKING:
    import pandas as pd


def run_settings(protocol: Protocol) -> dict[str, str]:
    """The settings of a protocol in the order of inference, with what each is: shared stages by their code, the others as `Seg` and
    `Mask`."""
    own = {name: stage for name, stage in protocol.stages.items() if name not in protocol.shared_stages}
    shared = {protocol.stages[name].code: name for name in protocol.shared_stages}
    seg = {f"{stage.code}-Seg": name for name, stage in own.items()}
    mask = {f"{stage.code}-Mask": f"{name}; oracle ROI" for name, stage in own.items()}
    words = {**shared, **seg, **mask}
    return {setting: name.replace("-", ", ") for setting, name in words.items()}


def run_table(cases: "pd.DataFrame", *, spec: RunSpec, protocol: Protocol) -> Sheet:
    """What one run achieved: a line per setting, means over the cases of the held-out center, source-validation DSC beside; with the
    official threshold, checkpoint and policy.

    Args:
        cases: raw rows of the run's evaluation, with those of its shared pancreas run where they exist.
        spec: the run's spec; names method, held-out center, seed and preset in the heading.
        protocol: the protocol, for its metric constants.

    Raises:
        DgbenchError: ``cases`` holds no such rows or lacks a column or a value.
    """
    import numpy as np

    rule = policies.resolve(OFFICIAL.policy, protocol)
    view = f"threshold {OFFICIAL.threshold_text}, checkpoint {OFFICIAL.checkpoint}"
    at_half = np.isclose(cases["threshold"], OFFICIAL_THRESHOLD, atol=1e-6)
    rows = cases[(cases["checkpoint"] == OFFICIAL.checkpoint) & at_half]
    if rows.empty:
        raise DgbenchError(f"evaluation holds no rows for {view} — evaluate the run again")
    resolved = policies.apply_policy(rows, rule)
    summary = policies.summarise(resolved, by=["setting", "role", "center"]).to_dict("records")
    columns = ("stage", "setting", "DSC", "ASD", "HD95", "centroid", "cases", "source-val DSC", NOTES)
    lines = []
    for setting, stage in run_settings(protocol).items():
        held = [line for line in summary if line["setting"] == setting and line["role"] == "held-out"]
        source = [line["dsc_mean"] for line in summary if line["setting"] == setting and line["role"] == "source-val"]
        for line in held:
            fallback = rows["roi"][(rows["setting"] == setting) & (rows["role"] == "held-out")].str.startswith(
                "fallback"
            )
            metrics = ("asd", "hd95", "centroid")
            lines.append(
                (
                    *(
                        stage,
                        setting,
                        _mean(100 * line["dsc_mean"]),
                        *(_mean(line[f"{metric}_mean"]) for metric in metrics),
                    ),
                    *(str(line["n"]), _mean(100 * sum(source) / len(source)) if source else "not evaluated"),
                    _run_notes(line, int(fallback.sum())),
                )
            )
    preset = spec.protocol
    stamp = ", ".join(preset.stamps)
    return Sheet(
        heading=(
            BANNERS[spec.protocol.kind],
            f"{spec.method.name}, held-out {spec.heldout}, seed {spec.seed}; protocol {preset.name} version {preset.version}, "
            f"preset {preset.preset}{f' ({stamp})' if stamp else ''}; {view}",
            describe_policy(rule),
            "DSC in points (0–100), distances in mm; source-val DSC: equal-weight mean over the source centers",
        ),
        columns=columns,
        rows=tuple(lines),
        numeric=frozenset(columns) - {"stage", "setting", NOTES},
    )


def _mean(value: float) -> str:
    return UNDEFINED if math.isnan(value) else f"{value:.1f}"


def _run_notes(line: Mapping[Hashable, Any], fallback: int) -> str:
    words = {
        "empty predictions": line["n_empty_prediction"],
        "failed": line["n_failed"],
        "excluded, no lesion": line["n_excluded"],
        "fallback ROI": fallback,
    }
    return ", ".join(f"{text} {count}" for text, count in words.items() if count)
