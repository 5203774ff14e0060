"""Networks as ONNX graphs of one fixed input shape, weights as codes."""
