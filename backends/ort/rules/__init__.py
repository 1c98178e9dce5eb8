"""One lowering rule a file, found by being there: its ``RULE`` says which kernel it writes and what it needs."""
