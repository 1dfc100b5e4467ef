"""The threshold of the final mask: a number for all, or a rule that chooses one for every run from its stored rows.

Rules are pure functions of rows that exist for a grid of thresholds (protocol.md §2): nothing is predicted again. ``source-tuned`` looks
at source validation only, as one could in the field. ``oracle`` looks at the held-out cases and ``paper`` at what the paper chose for each
held-out center, which is the same in effect; both are views of their own and never ranked.
"""

from typing import TYPE_CHECKING, Literal

from dgbench.errors import DgbenchError, suggest
from dgbench.protocol import Protocol

if TYPE_CHECKING:
    import pandas as pd

Rule = Literal["source-tuned", "oracle", "paper"]
RULES: tuple[Rule, ...] = ("source-tuned", "oracle", "paper")
TARGET_INFORMED: frozenset[Rule] = frozenset({"oracle", "paper"})
OFFICIAL_THRESHOLD = 0.5


def parse_threshold(text: str, protocol: Protocol) -> float | Rule:
    """A number between 0 and 1, or the name of a rule.

    Raises:
        DgbenchError: it is neither, or the paper chose no thresholds for the centers of ``protocol``.
    """
    for rule in RULES:
        if text == rule:
            if rule == "paper" and not protocol.paper_thresholds:
                raise DgbenchError(
                    f"--threshold paper: the paper gives none for the centers of protocol {protocol.name!r}"
                )
            return rule
    try:
        value = float(text)
    except ValueError:
        raise DgbenchError(f"--threshold {text!r}: neither a number nor a rule{suggest(text, RULES)}") from None
    if not 0 < value < 1:
        raise DgbenchError(f"--threshold {value:g}: a threshold lies between 0 and 1")
    return value


def choose_threshold(
    rule: float | Rule, cases: "pd.DataFrame", *, setting: str, checkpoint: str, heldout: str, protocol: Protocol
) -> float:
    """The threshold of one run under ``rule``, from all its raw ``cases``.

    ``source-tuned`` and ``oracle`` take the stored threshold with the highest mean DSC, equal weight for every center; of equals the one
    nearest to 0.5, then the lower. An empty prediction and a failed case count 0, a case without lesion takes no part.

    Raises:
        DgbenchError: there are no rows to choose from, or none was chosen for ``heldout`` in the paper.
    """
    if not isinstance(rule, str):
        return rule
    if rule == "paper":
        if heldout not in protocol.paper_thresholds:
            raise DgbenchError(f"the paper gives no threshold for {heldout}")
        return protocol.paper_thresholds[heldout]
    role = "source-val" if rule == "source-tuned" else "held-out"
    wanted = (cases["role"] == role) & (cases["setting"] == setting) & (cases["checkpoint"] == checkpoint)
    rows = cases[wanted & ~cases["empty_reference"].astype("bool")]
    if rows.empty:
        raise DgbenchError(f"evaluation holds no {role} rows of {setting}, {checkpoint} to choose a threshold from")
    dsc = rows["dsc"].where(~(rows["empty_prediction"].astype("bool") | rows["failed"].astype("bool")), 0.0)
    by_center = rows.assign(dsc=dsc).groupby(["threshold", "center"])["dsc"].mean().groupby("threshold").mean()
    means = {float(threshold): float(mean) for threshold, mean in by_center.items()}  # type: ignore[arg-type]
    best = max(means.values())
    return min(
        (threshold for threshold, mean in means.items() if mean >= best - 1e-12),
        key=lambda threshold: (round(abs(threshold - OFFICIAL_THRESHOLD), 6), threshold),
    )
