"""Metrics by name, one a file: ``METRIC``, made with held-out data, called with a runner, higher is better."""
