"""One number format a file (``quantizer.Quantizer``), found by being there, and second-order rounding. No graph."""
