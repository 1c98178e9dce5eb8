"""What other tools make of the same weights and the same data: quality, size, time and memory beside ours."""
