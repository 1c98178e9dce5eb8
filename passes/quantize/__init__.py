"""Quantization: decide (``make_plan`` under ``QuantizeOptions``), apply (``apply-plan``), or both (``quantize``)."""
