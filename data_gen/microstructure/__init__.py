"""Microstructures, one module a family. Each is a dataclass that a recipe names, with the same three methods.

``check(shape, voxel_size_um)`` raises ValueError where the recipe cannot be built; ``draw(rng)`` gives the parameters
of one sample; ``build(shape, voxel_size_um, parameters, rng)`` gives the labels (uint8) and a dictionary
of what came out.
"""

from data_gen.microstructure.electrode import NmcCathode
from data_gen.microstructure.fibres import Fibres
from data_gen.microstructure.foam import Foam
from data_gen.microstructure.graphite import GraphiteAnode
from data_gen.microstructure.layers import Layers, Nested
from data_gen.microstructure.particles import Particles
from data_gen.microstructure.porespy_wrap import Porespy
from data_gen.microstructure.segmented import Segmented
from data_gen.microstructure.sofc import Porous, Sofc
from data_gen.microstructure.spheres import Spheres

__all__ = [
    "Fibres",
    "Foam",
    "GraphiteAnode",
    "Layers",
    "Nested",
    "NmcCathode",
    "Particles",
    "Porespy",
    "Porous",
    "Segmented",
    "Sofc",
    "Spheres",
]
