"""Low-bit arithmetic: plan, prepare, calibrate, learn. Knows nothing of images, files or options."""
