"""ONNX Runtime: lowering, execution, and the audit of what really ran."""
