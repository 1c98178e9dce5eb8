"""Ways in: ONNX files and torch modules become an onnx_ir.Model."""
