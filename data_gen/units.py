"""Constants that turn one unit into another; the rest of the package keeps to µm, keV and 1/cm."""

import math

CM_PER_UM = 1e-4
SIGMA_PER_FWHM = 1 / math.sqrt(8 * math.log(2))  # of a Gaussian
