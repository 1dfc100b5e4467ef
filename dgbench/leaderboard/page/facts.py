"""What a table is of, in words: every choice that its numbers depend on."""

from collections.abc import Mapping

from dgbench.leaderboard.results import Compiled, Table, runs_text
from dgbench.leaderboard.sheets import UNRANKED, describe_policy, units
from dgbench.leaderboard.statistics import Evidence
from dgbench.leaderboard.statistics_sheets import EVIDENCE, NO_EVIDENCE
from dgbench.leaderboard.tables import cases_text, standing, troubles

SELECTION = {
    "source-val": "source-val — the checkpoint with the best mean over source validation; the held-out center has no say",
    "last-step": "last-step — the last step of training, nothing is selected",
}
THRESHOLDS = {
    "source-tuned": "source-tuned — for every run the best one on source validation",
    "oracle": "oracle — for every run the best one on the held-out center, which the field would not know",
    "paper": "paper — the paper's choice for each held-out center, an oracle in effect",
}
RULE = (
    "One or two seeds are smoke: they show that a method runs, and carry no interval. Three or four make a row: intervals, rank intervals "
    "and tiers, no p. Five or more make a claim: everything, with p after Holm and P(best). What the seeds do not permit is not printed."
)
PERMITS = {
    Evidence.SMOKE: "No interval, no p, no tier: an order in this table may be chance.",
    Evidence.ROW: "Intervals, rank intervals and tiers; no p, no claim of a difference.",
    Evidence.CLAIM: "Intervals, Holm-adjusted p, rank intervals, P(best) and tiers.",
}


def table_facts(compiled: Compiled, table: Table) -> dict[str, str]:
    """Fact by name, in the order in which they are shown."""
    return {
        "Protocol": f"{compiled.protocol} version {table.protocol_version}",
        "Content hash": table.content,
        "Preset": table.preset + ("" if table.ranked else " — not ranked"),
        "Standing": standing(compiled, table),
        **view_facts(compiled),
        "Held-out cases": f"{cases_text(table)}; {troubles(table)}",
        "Seeds": runs_text(compiled, table).partition(" ")[2],
        "Missing cells": str(len(table.missing)) + (" — listed below with reason and command" if table.missing else ""),
        "Data": table.data,
        "dgbench": ", ".join(table.dgbench),
        "Units": units(compiled.nsd_tolerance_mm),
    }


def view_facts(compiled: Compiled) -> dict[str, str]:
    """Which of the stored rows the numbers are of, and whether the held-out center told something."""
    view = compiled.view
    return {
        "Setting": view.setting + (" — an oracle: the label places the ROI" if view.setting.endswith("-Mask") else ""),
        "Selection rule": SELECTION.get(view.checkpoint, view.checkpoint),
        "Threshold rule": THRESHOLDS.get(view.threshold_text, f"{view.threshold_text} for all"),
        "Policy": describe_policy(compiled.policy).removeprefix("policy "),
    }


def table_title(compiled: Compiled, table: Table) -> str:
    """A heading that tells the tables of one page apart, by their data where nothing else does."""
    alike = [other for other in compiled.tables if _title(other) == _title(table)]
    return _title(table) + (f", data {table.data}" if len(alike) > 1 else "")


def _title(table: Table) -> str:
    return f"Preset {table.preset}, version {table.protocol_version} ({table.content[:8]}), dgbench {', '.join(table.dgbench)}"


def evidence_words(table: Table) -> Mapping[str, str] | None:
    """The grade of the table, what it permits, and the rule behind it; None without a complete row."""
    if table.statistics is None:
        return None
    grade = table.statistics.evidence
    if grade is None:
        return {"grade": "none", "words": NO_EVIDENCE, "permits": "No interval, no p, no tier.", "rule": RULE}
    if not table.ranked:
        return {"grade": grade.value, "words": UNRANKED, "permits": "Differences with their intervals.", "rule": RULE}
    return {"grade": grade.value, "words": EVIDENCE[grade], "permits": PERMITS[grade], "rule": RULE}
