"""Real architectures by what the compiler does with them: ``python -m graphpress.tools.bench.architectures``."""
