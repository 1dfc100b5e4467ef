"""The shift axes: what differs between the phantom's centers, how strongly, and what in the paper supports it.

Each parameter has a *common* range, from which every center draws at strength 0, and a range per center, from which it draws at
strength 1. One uniform number per case and parameter is turned into a value of both ranges and the two are interpolated, so that
a case changes continuously with the strength and keeps its place within its center. Strengths above 1 extrapolate.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

CENTERS: tuple[str, ...] = ("MSD", "RENJI", "RMYY", "NIH")
LESION_FREE: frozenset[str] = frozenset({"NIH"})

Kind = Literal["appearance", "content", "annotation"]


@dataclass(frozen=True)
class Span:
    """A uniform (or, with ``log``, log-uniform) range of one parameter, cut to ``[floor, ceiling]`` after interpolation."""

    low: float
    high: float
    log: bool = False
    floor: float = -math.inf
    ceiling: float = math.inf

    def at(self, u: float) -> float:
        """The quantile ``u`` in [0, 1)."""
        if self.log:
            return math.exp((1 - u) * math.log(self.low) + u * math.log(self.high))
        return (1 - u) * self.low + u * self.high


@dataclass(frozen=True)
class Axis:
    """One named way in which centers differ.

    ``support`` says where it comes from: ``Table I``, ``section IV.I``, ``section V.D`` of the paper, or ``assumed``; ``note``
    says exactly which part of it. ``common`` maps parameters to their neutral ranges, ``centers`` to the ranges at strength 1;
    a center or a parameter that is not listed there keeps the common range at every strength.
    """

    name: str
    kind: Kind
    support: str
    note: str
    common: Mapping[str, Span]
    centers: Mapping[str, Mapping[str, tuple[float, float]]]

    def draw(self, center: str, strength: float, uniforms: Mapping[str, float]) -> dict[str, float]:
        """Parameter values of one case; ``uniforms`` holds one number in [0, 1) per parameter."""
        values = {}
        for key, common in self.common.items():
            low, high = self.centers.get(center, {}).get(key, (common.low, common.high))
            u = uniforms[key]
            own = Span(low, high, common.log).at(u)
            value = (1 - strength) * common.at(u) + strength * own
            values[key] = min(max(value, common.floor), common.ceiling)
        return values


_THICKNESS = Axis(
    name="thickness",
    kind="appearance",
    support="Table I",
    note="in-plane spacing and slice thickness are the ranges of Table I (log-uniform within them: assumed); "
    "NIH is not in the table: assumed",
    common={
        "spacing": Span(0.60, 0.90, floor=0.4, ceiling=1.2),
        "thickness": Span(1.00, 2.50, log=True, floor=0.5, ceiling=9.0),
    },
    centers={
        "MSD": {"spacing": (0.60, 0.97), "thickness": (0.70, 7.50)},
        "RENJI": {"spacing": (0.55, 0.88), "thickness": (0.59, 1.25)},
        "RMYY": {"spacing": (0.54, 0.86), "thickness": (1.50, 5.00)},
        "NIH": {"spacing": (0.66, 0.98), "thickness": (0.75, 1.50)},
    },
)

_KERNEL = Axis(
    name="kernel",
    kind="appearance",
    support="assumed",
    note="the paper names several manufacturers (Table I) but no reconstruction kernel; smooth, edge-enhancing"
    " and standard ones are invented",
    common={"blur": Span(0.40, 0.55, floor=0.0, ceiling=3.0), "edge_gain": Span(0.0, 0.2, floor=0.0, ceiling=4.0)},
    centers={
        "MSD": {"blur": (0.60, 0.80), "edge_gain": (0.0, 0.0)},
        "RENJI": {"blur": (0.20, 0.35), "edge_gain": (0.4, 0.8)},
        "RMYY": {"blur": (0.40, 0.60), "edge_gain": (0.0, 0.1)},
        "NIH": {"blur": (0.45, 0.65), "edge_gain": (0.0, 0.2)},
    },
)

_NOISE = Axis(
    name="noise",
    kind="appearance",
    support="Table I",
    note="noise level follows the tube current and voltage ranges of Table I in order and width; its values in"
    " HU and its texture are assumed",
    common={"sd": Span(8.0, 14.0, floor=0.0, ceiling=120.0), "grain": Span(0.30, 0.50, floor=0.05, ceiling=3.0)},
    centers={
        "MSD": {"sd": (6.0, 10.0), "grain": (0.45, 0.65)},
        "RENJI": {"sd": (15.0, 26.0), "grain": (0.10, 0.25)},
        "RMYY": {"sd": (7.0, 13.0), "grain": (0.60, 0.85)},
        "NIH": {"sd": (8.0, 13.0), "grain": (0.30, 0.50)},
    },
)

_CONTRAST = Axis(
    name="contrast",
    kind="appearance",
    support="assumed",
    note="the paper's data are all venous phase; section V.D only names phases as a cause of different imaging"
    " styles. Values (HU) are invented: portal-venous with positive oral contrast (MSD, NIH), pancreatic "
    "phase with water (RENJI), late phase with neutral content (RMYY)",
    common={
        "pancreas": Span(92.0, 110.0),
        "pda": Span(-74.0, -60.0, ceiling=-15.0),
        "ipmn": Span(8.0, 22.0),
        "pnet": Span(55.0, 75.0, floor=15.0),
        "liver": Span(92.0, 115.0),
        "spleen": Span(105.0, 125.0),
        "kidney": Span(150.0, 185.0),
        "artery": Span(140.0, 180.0),
        "vein": Span(140.0, 170.0),
        "wall": Span(72.0, 92.0),
        "content": Span(20.0, 90.0),
    },
    centers={
        "MSD": {
            "pancreas": (90.0, 112.0),
            "pda": (-72.0, -58.0),
            "liver": (105.0, 125.0),
            "spleen": (110.0, 130.0),
            "kidney": (160.0, 200.0),
            "artery": (140.0, 170.0),
            "vein": (150.0, 185.0),
            "wall": (75.0, 95.0),
            "content": (130.0, 230.0),
        },
        "RENJI": {
            "pancreas": (104.0, 124.0),
            "pda": (-80.0, -64.0),
            "pnet": (60.0, 90.0),
            "liver": (65.0, 85.0),
            "spleen": (120.0, 155.0),
            "kidney": (175.0, 230.0),
            "artery": (240.0, 320.0),
            "vein": (100.0, 130.0),
            "wall": (88.0, 115.0),
            "content": (14.0, 34.0),
        },
        "RMYY": {
            "pancreas": (78.0, 96.0),
            "pda": (-64.0, -50.0),
            "pnet": (34.0, 50.0),
            "liver": (82.0, 100.0),
            "spleen": (80.0, 95.0),
            "kidney": (110.0, 140.0),
            "artery": (86.0, 105.0),
            "vein": (86.0, 105.0),
            "wall": (62.0, 78.0),
            "content": (45.0, 75.0),
        },
        "NIH": {"liver": (100.0, 120.0), "vein": (145.0, 180.0), "content": (90.0, 200.0)},
    },
)

_CALIBRATION = Axis(
    name="calibration",
    kind="appearance",
    support="assumed",
    note="HU offset and scale between scanners; the tube voltages of Table I make such differences plausible, "
    "their values are invented",
    common={"offset": Span(-4.0, 4.0), "scale": Span(0.99, 1.01, floor=0.3, ceiling=3.0)},
    centers={
        "RENJI": {"offset": (0.0, 8.0), "scale": (1.01, 1.04)},
        "RMYY": {"offset": (-14.0, -4.0), "scale": (0.95, 0.98)},
    },
)

_LESION = Axis(
    name="lesion",
    kind="content",
    support="Table I",
    note="patient cohorts of Table I with the counts of section IV.I (MSD: 74 of 281 with stent, 65 IPMN, 36 "
    "PNET, 106 common PDA; others PDA); the size distributions are assumed",
    common={
        "stent_share": Span(0.09, 0.09, floor=0.0),
        "ipmn_share": Span(0.08, 0.08, floor=0.0),
        "pnet_share": Span(0.04, 0.04, floor=0.0),
        "size": Span(0.10, 0.90, floor=0.0, ceiling=1.0),
    },
    centers={
        "MSD": {
            "stent_share": (74 / 281, 74 / 281),
            "ipmn_share": (65 / 281, 65 / 281),
            "pnet_share": (36 / 281, 36 / 281),
            "size": (0.0, 1.0),
        },
        "RENJI": {"stent_share": (0.0, 0.0), "ipmn_share": (0.0, 0.0), "pnet_share": (0.0, 0.0), "size": (0.05, 0.80)},
        "RMYY": {"stent_share": (0.0, 0.0), "ipmn_share": (0.0, 0.0), "pnet_share": (0.0, 0.0), "size": (0.20, 1.0)},
    },
)

_ANNOTATION = Axis(
    name="annotation",
    kind="annotation",
    support="section V.D",
    note="conservative or radical contours; the order of the centers is read from the paper's thresholds (RMYY"
    " 0.9, MSD 0.7, RENJI 0.1), the margins in mm and the smoothness are assumed. At strength 0 the "
    "annotated lesion is the true one",
    common={"margin": Span(0.0, 0.0), "smoothness": Span(0.0, 0.0, floor=0.0, ceiling=1.0)},
    centers={
        "MSD": {"margin": (-1.5, 0.3), "smoothness": (0.1, 0.4)},
        "RENJI": {"margin": (1.2, 3.0), "smoothness": (0.5, 0.9)},
        "RMYY": {"margin": (-3.0, -1.2), "smoothness": (0.3, 0.7)},
    },
)

AXES: Mapping[str, Axis] = {
    axis.name: axis for axis in (_THICKNESS, _KERNEL, _NOISE, _CONTRAST, _CALIBRATION, _LESION, _ANNOTATION)
}
