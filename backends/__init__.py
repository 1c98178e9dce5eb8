"""What executes a graph, and what turns one into the form that its runtime is fast at."""
