"""ONNX Runtime: sessions, lowering, audit."""
