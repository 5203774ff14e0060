"""Grids: which values a b-bit code stands for between two learnable bounds."""
