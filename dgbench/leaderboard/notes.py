"""What stands in the notes of a row: its stamps, and what went into its means."""

from collections import Counter
from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from dgbench.leaderboard.records import Record
from dgbench.leaderboard.results import CenterResult
from dgbench.store.folder import RunSpec
from dgbench.store.selection import Selection


def stamps(members: Sequence[Record]) -> tuple[str, ...]:
    """What must be said beside every number of a row made of ``members``."""
    return stamps_of([run.spec for run in members])


def stamps_of(specs: Sequence[RunSpec]) -> tuple[str, ...]:
    """What must be said beside every number of a row made of the runs ``specs``."""
    if specs[0].method.imported:
        return ("imported, not trained under this protocol",)
    found = [*dict.fromkeys(stamp for spec in specs for stamp in spec.protocol.stamps)]
    found += specs[0].environment.stamps
    if (factor := specs[0].method.draws_factor) != 1:
        found.append(f"control row with {factor}× the draws, not ranked")
    if (tuned := specs[0].tuned) is not None and not specs[0].protocol.modified:
        how = "on source validation" if tuned.selection is Selection.SOURCE_VAL else f"by {tuned.selection}"
        found.append(f"tuned {how}, {tuned.trials} trials for each center")
    devices = sorted({f"{spec.environment.device} {spec.environment.precision}" for spec in specs})
    if len(devices) > 1:
        found.append(f"mixed devices: {', '.join(devices)}")
    return tuple(found)


def stamp_words(rows: Mapping[str, Sequence[str]]) -> list[str]:
    """The stamps of ``rows`` (by label), each once: alone where it holds for every row, else with the rows it holds for."""
    found: dict[str, list[str]] = {}
    for label, row_stamps in rows.items():
        for stamp in row_stamps:
            found.setdefault(stamp, []).append(label)
    return [stamp if len(labels) == len(rows) else f"{stamp}: {', '.join(labels)}" for stamp, labels in found.items()]


def common_config(members: Sequence[Record]) -> dict[str, JsonValue]:
    """The configuration of a row; ``tuned`` for what studies chose differently for its centers."""
    configs = [record.spec.method.config for record in members]
    return {
        key: value if all(config.get(key) == value for config in configs) else "tuned"
        for key, value in configs[0].items()
    }


def repeated(results: Mapping[str, CenterResult]) -> list[str]:
    """Where two seeds of an imported system have the same result in every metric: one set of masks twice, which says nothing of how
    trainings differ."""
    found = []
    for center, result in results.items():
        means = [run.means for run in result.runs.values()]
        if any(one in means[:place] for place, one in enumerate(means)):
            found.append(center)
    if not found:
        return []
    return [
        f"equal results of several seeds at {', '.join(found)}: not compared, a system that was trained once has one seed"
    ]


def counts(centers: Mapping[str, CenterResult]) -> list[str]:
    """Empty predictions and failed cases over all counted runs of a row, where there are any."""
    total: Counter[str] = Counter()
    for result in centers.values():
        total.update(result.counts)
    words = {
        "n_empty_prediction": ("empty predictions", "n"),
        "n_failed": ("failed cases", "n"),
        "n_failed_lesion_free": ("failed lesion-free cases (left out of their false positives)", "n_lesion_free"),
    }
    return [f"{text} {total[count]}/{total[of]}" for count, (text, of) in words.items() if total[count]]
