"""Training of a rewritten graph: batches, steps, checkpoints, resume."""
