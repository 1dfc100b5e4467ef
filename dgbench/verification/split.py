"""The splits of a record: each stage was trained and validated on what the protocol makes of the cases of its centers."""

from collections import defaultdict
from collections.abc import Iterable
from itertools import zip_longest

from dgbench.atomic import read_json
from dgbench.data.splits import center_of, heldout_parts, order_ids, validation_count
from dgbench.errors import DgbenchError
from dgbench.protocol import ResolvedProtocol
from dgbench.verification.record import Record


def check_splits(record: Record, resolved: ResolvedProtocol) -> None:
    """Every stage has the sources of the protocol and, of all their cases, those for validation that the protocol chooses; a center has the
    same cases in all stages, and in a phantom those of its recipe.

    Raises:
        DgbenchError: what does not hold, in one line that names the file.
    """
    protocol, cases = resolved.protocol, dict[str, set[str]]()
    for stage in record.spec.stages:
        path = record.stage(stage) / "spec.json"
        split = read_json(path)["split"]
        found: defaultdict[str, set[str]] = defaultdict(set)
        for case in (*split["train"], *split["validation"]):
            found[center_of(case)].add(case)
        sources = _sources(record, resolved, stage, found)
        name = f"{'fold' if protocol.folds else 'loco'}-{record.spec.heldout}"
        for what, stated, wanted in (("id", split["id"], name), ("sources", split["sources"], sources)):
            if stated != wanted:
                raise DgbenchError(f"{path}: split.{what} is {stated}, protocol {protocol.name} gives {wanted}")
        validation: list[str] = []
        train: list[str] = []
        for source in sources:
            ids = _of_phantom(record, resolved, source) or found[source]
            if not ids or ids != cases.setdefault(source, ids):
                raise DgbenchError(f"{path}: split has {len(ids)} cases of {source}, not those of the other stages")
            ordered = order_ids(ids, "split", protocol.name, str(protocol.version))
            n_validation = validation_count(len(ordered), protocol.validation_fraction)
            validation += sorted(ordered[:n_validation])
            train += sorted(ordered[n_validation:])
        for part, chosen in (("validation", validation), ("train", train)):
            for stated, wanted in zip_longest(split[part], chosen):
                if stated != wanted:
                    raise DgbenchError(
                        f"{path}: split.{part} has {stated or 'no more cases'} where protocol {protocol.name} chooses {wanted or 'none'}"
                    )


def _sources(record: Record, resolved: ResolvedProtocol, stage: str, found: Iterable[str]) -> list[str]:
    """The source centers of a stage in their order; of patient data, support centers may be absent."""
    protocol = resolved.protocol
    own = protocol.center_of(record.spec.heldout)
    sources = [own] if protocol.folds else [name for name in protocol.centers if name != own]
    if not protocol.stages[stage].support_centers:
        return sources
    there = protocol.support_centers if resolved.preset.phantom is not None else set(found)
    return sources + [name for name in protocol.support_centers if name in there]


def _of_phantom(record: Record, resolved: ResolvedProtocol, center: str) -> set[str]:
    """The cases of a center of the phantom that are not held out; none for patient data."""
    from dgbench.data.phantom import case_name

    protocol, phantom, heldout = resolved.protocol, resolved.preset.phantom, record.spec.heldout
    if phantom is None:
        return set()
    ids = {f"{center}/{case_name(center, index)}" for index in range(phantom.cases)}
    own = protocol.center_of(heldout)
    return ids.difference(heldout_parts(protocol, own, ids)[heldout]) if center == own else ids
