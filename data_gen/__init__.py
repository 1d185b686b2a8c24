"""Makes worlds, learns nothing: microstructures, materials, spectra, projection, reconstruction, datasets."""

import bundle  # noqa: F401  (shows the cause of an error in a bundle run)
