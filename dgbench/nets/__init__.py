"""The shared backbone, its blocks and heads."""

from dgbench.nets.backbone import Backbone, Features, Tap
from dgbench.nets.blocks import ResBlock, point_conv
from dgbench.nets.heads import DistanceHead, InPlaneMean, ProjectionHead, SliceHead
from dgbench.nets.upsample import upsample_linear, upsample_nearest

__all__ = [
    "Backbone",
    "DistanceHead",
    "Features",
    "InPlaneMean",
    "ProjectionHead",
    "ResBlock",
    "SliceHead",
    "Tap",
    "point_conv",
    "upsample_linear",
    "upsample_nearest",
]
