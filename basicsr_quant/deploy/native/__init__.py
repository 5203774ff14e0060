"""Kernels in plain C that compute on codes: compiled at first use, called through ctypes.

``BASICSR_QUANT_NATIVE=0`` in the environment switches them off.
"""

from basicsr_quant.deploy.native.library import SWITCH, available, best_kernels, load_level, missing, usable_levels

__all__ = ["SWITCH", "available", "best_kernels", "load_level", "missing", "usable_levels"]
