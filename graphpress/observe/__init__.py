"""Data, and what is seen of a model that runs over it: ranges, histograms, moments."""
