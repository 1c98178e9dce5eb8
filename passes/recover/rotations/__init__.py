"""Bases of a quantized model that are learned: what they turn, and the step that keeps them orthogonal."""
