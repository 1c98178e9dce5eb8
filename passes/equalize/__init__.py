"""Scales moved between activations and weights, so that both quantize well; the function stays the same."""
