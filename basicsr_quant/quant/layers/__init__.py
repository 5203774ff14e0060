"""Quantized counterparts of modules, one file each."""
