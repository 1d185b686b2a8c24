"""Makes worlds, learns nothing: microstructures, materials, spectra, projection, reconstruction, datasets."""
