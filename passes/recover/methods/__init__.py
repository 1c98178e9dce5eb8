"""Training methods, one a file: ``recover{method=NAME}`` finds them by their ``METHOD``."""
