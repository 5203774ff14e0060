"""basicsr_quant: super-resolution at low bit-widths: train, quantize, evaluate, pack and run."""

__version__ = "0.1.0"
