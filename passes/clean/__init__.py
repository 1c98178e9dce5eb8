"""Passes that keep the function and make the graph smaller or plainer."""
