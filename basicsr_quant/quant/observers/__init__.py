"""Observers: see tensors pass, then name the bounds of a quantizer. One file each."""
