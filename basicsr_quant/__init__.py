"""basicsr_quant: super-resolution at low bit-widths: train, quantize, evaluate."""

__version__ = "0.1.0"
