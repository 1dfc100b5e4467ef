"""The embedded data set: a multi-center abdominal CT phantom whose center differences have names and strengths (docs/phantom.md)."""

from dgbench.data.phantom.axes import AXES, CENTERS, LESION_FREE, Axis
from dgbench.data.phantom.generate import PhantomCase, annotation_ceiling, case_name, draw_case, lesion_type
from dgbench.data.phantom.recipe import GENERATOR_VERSION, PhantomRecipe, fingerprint
from dgbench.data.phantom.write import write_phantom

__all__ = [
    "AXES",
    "CENTERS",
    "GENERATOR_VERSION",
    "LESION_FREE",
    "Axis",
    "PhantomCase",
    "PhantomRecipe",
    "annotation_ceiling",
    "case_name",
    "draw_case",
    "fingerprint",
    "lesion_type",
    "write_phantom",
]
