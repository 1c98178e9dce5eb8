"""Layers found by data flow: linear layers, feed-forward blocks, attention heads, norms, residual streams."""
