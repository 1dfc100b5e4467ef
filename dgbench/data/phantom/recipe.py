"""What a phantom is made from: size, number of cases, seed, strengths; its fingerprint; and its random streams."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from dgbench.data.phantom.axes import AXES, CENTERS
from dgbench.errors import DgbenchError, suggest

GENERATOR_VERSION = 2

Size = Literal["tiny", "small", "full"]


@dataclass(frozen=True)
class SizeSpec:
    """Scale of a phantom. ``small`` keeps the body and enlarges voxels, pancreas and lesions so that a coarse grid resolves them;
    ``tiny`` is that around the pancreas only, for tests.

    Attributes:
        spacing_gain: factor on the in-plane spacing of the ``thickness`` axis (mm).
        thickness_map: slice thickness in mm is ``a + b·t`` of the axis value ``t``.
        detail: factor on the lengths of kernel, noise grain and fine structures (mm at 1).
        extent: field of view (y, x) in mm; ``None`` for a fixed number of pixels.
        pixels: in-plane matrix where ``extent`` is None.
        coverage: range of the scan length along z, in mm.
        slices: smallest and largest number of slices.
        gland: factor on the radius of the pancreas.
        diameter: smallest and largest lesion diameter in mm.
    """

    spacing_gain: float
    thickness_map: tuple[float, float]
    detail: float
    extent: tuple[float, float] | None
    pixels: int
    coverage: tuple[float, float]
    slices: tuple[int, int]
    gland: float
    diameter: tuple[float, float]


SIZES: Mapping[str, SizeSpec] = {
    "tiny": SizeSpec(3.8, (1.6, 0.85), 3.5, (93.0, 189.0), 0, (104.0, 116.0), (12, 75), 1.2, (18.0, 35.0)),
    "small": SizeSpec(3.8, (1.6, 0.85), 3.5, (220.0, 300.0), 0, (140.0, 175.0), (20, 90), 1.2, (24.0, 48.0)),
    "full": SizeSpec(1.0, (0.0, 1.0), 1.0, None, 512, (190.0, 290.0), (37, 751), 1.0, (16.0, 50.0)),
}


@dataclass(frozen=True)
class PhantomRecipe:
    """Everything that determines a phantom; two equal recipes give the same phantom on one machine.

    Args:
        size: ``tiny`` or ``small`` (coarse grids, fractions of a second per case) or ``full`` (512×512, the spacings of Table I).
        cases: number of cases of every center, or a mapping from center to number (centers left out are not written).
        seed: base seed, ≥ 0.
        strengths: strength per axis, 0 = centers are exchangeable in it, 1 = its full shift; axes left out have strength 1.

    Raises:
        DgbenchError: unknown size, center or axis, no case, negative seed or strength.
    """

    size: Size = "small"
    cases: int | Mapping[str, int] = 10
    seed: int = 0
    strengths: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise DgbenchError(f"phantom: unknown size {self.size!r}{suggest(str(self.size), SIZES)}")
        for name, strength in self.strengths.items():
            if name not in AXES:
                raise DgbenchError(f"phantom: unknown shift axis {name!r}{suggest(name, AXES)}")
            if not (math.isfinite(strength) and strength >= 0):
                raise DgbenchError(f"phantom: strength of axis {name!r} is {strength}, it must be a number ≥ 0")
        if isinstance(self.cases, Mapping):
            for center in self.cases:
                check_center(center)
        if not self.counts() or min(self.counts().values()) < 1:
            raise DgbenchError(f"phantom: cases = {self.cases}, every center needs at least 1")
        if self.seed < 0:
            raise DgbenchError(f"phantom: seed {self.seed} is negative, it must be ≥ 0")

    def counts(self) -> dict[str, int]:
        """Number of cases per center, in the order of ``CENTERS``."""
        if isinstance(self.cases, Mapping):
            return {center: int(self.cases[center]) for center in CENTERS if center in self.cases}
        return dict.fromkeys(CENTERS, int(self.cases))

    def strength(self, axis: str) -> float:
        """Strength of ``axis``; 1 where the recipe does not name it."""
        return float(self.strengths.get(axis, 1.0))

    def spec(self) -> SizeSpec:
        """The scale that belongs to ``size``."""
        return SIZES[self.size]

    def describe(self) -> dict[str, Any]:
        """The recipe as plain JSON values, every default spelled out."""
        return {
            "generator_version": GENERATOR_VERSION,
            "size": self.size,
            "cases": self.counts(),
            "seed": self.seed,
            "strengths": {name: self.strength(name) for name in AXES},
        }


def check_center(center: str) -> None:
    """Raise a ``DgbenchError`` with a suggestion if ``center`` is not one of the phantom's."""
    if center not in CENTERS:
        raise DgbenchError(f"phantom: unknown center {center!r}{suggest(center, CENTERS)}")


def fingerprint(recipe: PhantomRecipe) -> str:
    """Identity of a phantom as a SHA-256 in hex.

    It covers the generator version, the recipe, and the tables of axes and sizes; not the bytes of the volumes, which may differ in
    the last bit between processors.
    """
    tables = {"axes": {name: _ranges(name) for name in AXES}, "size": asdict(recipe.spec())}
    text = json.dumps({"recipe": recipe.describe(), "tables": tables}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _ranges(name: str) -> dict[str, Any]:
    axis = AXES[name]
    return {
        "common": {key: [str(value) for value in asdict(span).values()] for key, span in axis.common.items()},
        "centers": {center: {key: list(span) for key, span in spans.items()} for center, spans in axis.centers.items()},
    }


def stream(recipe: PhantomRecipe, center: str, index: int, purpose: str) -> np.random.Generator:
    """A generator of its own for one purpose of one case: the Philox key is sha256(seed, center, index, purpose)."""
    digest = hashlib.sha256(f"dgbench-phantom|{recipe.seed}|{center}|{index}|{purpose}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def draw_axis(recipe: PhantomRecipe, center: str, index: int, name: str) -> dict[str, float]:
    """Parameter values of axis ``name`` for one case; the underlying uniform numbers do not depend on the strengths."""
    axis = AXES[name]
    rng = stream(recipe, center, index, f"axis/{name}")
    uniforms = dict(zip(axis.common, rng.random(len(axis.common)).tolist(), strict=True))
    return axis.draw(center, recipe.strength(name), uniforms)
