"""Ways out: each lowers a graph to one runtime and runs it there."""
