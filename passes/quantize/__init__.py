"""Passes that decide how tensors are stored, and the one that writes a decision into the graph."""
