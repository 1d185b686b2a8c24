"""Painted packs measured by PoreSpy, which shares no code with the painter."""

import numpy as np
import porespy as ps

from data_gen.microstructure.spheres import draw_radii, pack, paint


def test_local_thickness_finds_the_largest_radius():
    rng = np.random.default_rng(0)
    box = np.array([200.0, 160.0])
    radii = draw_radii(box, 0.3, 20.0, 0.2, rng)
    centres = pack(box, radii, rng, gap=0.2)  # apart, so that no inscribed circle reaches over two
    thickness = ps.filters.local_thickness(paint((200, 160), 1.0, centres, radii).astype(bool))
    # PoreSpy's radii are whole voxels, and a digitised circle of radius r holds one of more than r − 1.5
    assert radii.max() - 1.5 < thickness.max() <= radii.max() + 0.5
