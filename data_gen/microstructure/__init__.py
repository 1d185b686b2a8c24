"""Microstructures, one module a family. Each is a dataclass that a recipe names, with the same three methods.

``check(shape, voxel_size_um)`` raises ValueError where the recipe cannot be built; ``draw(rng)`` gives the parameters
of one sample; ``build(shape, voxel_size_um, parameters, rng)`` gives the labels (uint8) and a dictionary
of what came out.
"""

from data_gen.microstructure.segmented import Segmented
from data_gen.microstructure.spheres import Spheres

__all__ = ["Segmented", "Spheres"]
