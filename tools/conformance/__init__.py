"""ONNX's own backend test suite against a backend of ours."""
