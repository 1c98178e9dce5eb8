"""One compilation from model to deployed artifact: compile, budgets, gate, latency, output folder."""
