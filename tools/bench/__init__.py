"""Measurements against other products, each with the command that repeats it."""
