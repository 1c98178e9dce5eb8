"""The mathematics of one quantizer a file: fit, quantize, dequantize. No graph."""
