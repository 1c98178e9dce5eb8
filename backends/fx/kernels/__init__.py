"""Modules that compute a quantized product with torch's low-bit kernels, exactly, or say why they cannot.

Each holds portable state (integer codes as torch's modules have weights, float32 scales, zero points, bias) and packs
for the device when it first runs. ``available`` tests a weight and a machine, ``reference`` is the same in plain torch.
"""
