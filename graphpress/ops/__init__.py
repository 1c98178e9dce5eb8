"""The dialect `graphpress::`, one file an op: what it means in standard ONNX, how it is verified, and its kernels."""
