"""Files: atomic writes, weights that are only read as data, digests, images, progress."""
