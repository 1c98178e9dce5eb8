"""Quantization: decide (``make_plan`` under ``Options``), then apply (``apply-plan``); ``quantize`` does both."""
