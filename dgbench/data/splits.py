"""Who trains, who validates, who is judged. A split depends on the protocol and the data only, never on seed or method (protocol.md §3)."""

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from dgbench.data.case import Case, Center
from dgbench.errors import DgbenchError, suggest
from dgbench.protocol import Protocol

MIN_CASES_FOR_VALIDATION = 4


@dataclass(frozen=True)
class Split:
    """Ids of the training, source-validation and test cases, and of the support cases that only some stages train on.

    ``sources`` gives the domain index of a training case: the position of its center.
    """

    id: str
    sources: tuple[str, ...]
    support: tuple[str, ...]
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    def for_stage(self, *, support_centers: bool) -> "Split":
        """The same split without the support centers' cases, unless the stage wants them."""
        if support_centers or not self.support:
            return self
        keep = set(self.sources) - set(self.support)
        return Split(
            self.id,
            tuple(name for name in self.sources if name in keep),
            (),
            tuple(case for case in self.train if center_of(case) in keep),
            tuple(case for case in self.validation if center_of(case) in keep),
            self.test,
        )

    def without(self, source: str) -> "Split":
        """The same split without the source center ``source``: neither trained nor validated on.

        Raises DgbenchError where no source center is left that gives a validation case.
        """
        kept = tuple(name for name in self.sources if name != source)
        validation = tuple(case for case in self.validation if center_of(case) != source)
        if all(center_of(case) in self.support for case in validation):
            raise DgbenchError(
                f"{self.id}: without {source} no source center has {MIN_CASES_FOR_VALIDATION} cases or more, and no checkpoint could be "
                "selected — add cases"
            )
        train = tuple(case for case in self.train if center_of(case) != source)
        return replace(self, id=f"{self.id}-without-{source}", sources=kept, train=train, validation=validation)


def center_of(case_id: str) -> str:
    """The center part of a case id."""
    return case_id.partition("/")[0]


def order(cases: Iterable[Case], *salt: str) -> list[Case]:
    """``cases`` in a fixed order that depends on their ids and ``salt`` alone."""
    by_id = {case.id: case for case in cases}
    return [by_id[case_id] for case_id in order_ids(by_id, *salt)]


def order_ids(case_ids: Iterable[str], *salt: str) -> list[str]:
    """Case ids in a fixed order that depends on them and ``salt`` alone."""
    return sorted(case_ids, key=lambda case_id: hashlib.sha256("/".join([*salt, case_id]).encode()).digest())


def validation_count(n_cases: int, fraction: float) -> int:
    """max(2, fraction of the cases, rounded up); none for a center with fewer than four cases."""
    return 0 if n_cases < MIN_CASES_FOR_VALIDATION else max(2, math.ceil(fraction * n_cases))


def without_validation(split: Split) -> tuple[str, ...]:
    """Source centers with too few cases to give one for validation: no checkpoint is selected on them."""
    validated = {center_of(case) for case in split.validation}
    return tuple(name for name in split.sources if name not in validated)


def check_heldout(protocol: Protocol, heldout: str) -> None:
    """Raise DgbenchError unless ``protocol`` can hold ``heldout`` out."""
    if heldout not in protocol.heldouts:
        what = "fold" if protocol.folds else "center"
        raise DgbenchError(
            f"unknown held-out {what} {heldout!r} for protocol {protocol.name!r}{suggest(heldout, protocol.heldouts)}"
        )


def heldout_parts(protocol: Protocol, center: str, case_ids: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The cases of ``center`` by what is held out together: all of them, or in-domain its folds, which differ by one case at most."""
    names = protocol.heldouts_of(center)
    if not protocol.folds:
        return {center: tuple(case_ids)}
    ordered = order_ids(case_ids, "fold", protocol.name, str(protocol.version))
    return {name: tuple(sorted(ordered[fold :: len(names)])) for fold, name in enumerate(names)}


def make_split(protocol: Protocol, centers: Mapping[str, Center], heldout: str) -> Split:
    """The split in which ``heldout`` is judged: train and validate on every other center, or in-domain on the other folds of its own, and
    on the support centers.

    Raises DgbenchError for an unknown name, a center that would be source and held out at once, folds without a case, or when no source
    center has enough cases for validation.
    """
    check_heldout(protocol, heldout)
    own = protocol.center_of(heldout)
    support = tuple(name for name in protocol.support_centers if name in centers)
    sources = ((own,) if protocol.folds else tuple(name for name in protocol.centers if name != own)) + support
    if own in (support if protocol.folds else sources) or len(set(sources)) != len(sources):
        raise DgbenchError(
            f"held-out {heldout}: protocol {protocol.name} makes it a source too, or a source twice ({', '.join(sources)}) "
            "— name every center once"
        )
    test = heldout_parts(protocol, own, (case.id for case in centers[own].cases))[heldout]
    if not test:
        raise DgbenchError(
            f"held-out {heldout}: center {own} has {len(centers[own].cases)} cases, fewer than the {protocol.folds} folds of "
            f"protocol {protocol.name} — add cases"
        )
    train: list[str] = []
    validation: list[str] = []
    for name in sources:
        free = [case for case in centers[name].cases if case.id not in test]
        ordered = order(free, "split", protocol.name, str(protocol.version))
        n_validation = validation_count(len(ordered), protocol.validation_fraction)
        validation += sorted(case.id for case in ordered[:n_validation])
        train += sorted(case.id for case in ordered[n_validation:])
    if not any(center_of(case) not in support for case in validation):
        raise DgbenchError(
            f"held-out {heldout}: no source center has {MIN_CASES_FOR_VALIDATION} cases or more, so source validation would be empty "
            "and no checkpoint could be selected — add cases"
        )
    return Split(
        f"{'fold' if protocol.folds else 'loco'}-{heldout}",
        sources,
        support,
        tuple(train),
        tuple(validation),
        test,
    )
