"""dgbench: an honest benchmark of domain-generalization methods in 3D medical segmentation."""

__version__ = "0.1.0.dev0"
