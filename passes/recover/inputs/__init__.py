"""Calibration inputs made from what the model itself has learned."""
