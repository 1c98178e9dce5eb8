"""Weights set to zero in patterns that hardware or storage can use."""
