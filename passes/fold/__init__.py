"""Quant-node folding: the fewest conversions that mean the same."""
