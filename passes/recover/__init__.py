"""Accuracy won back after a lossy rewrite: second-order rounding, and training against the model before."""
