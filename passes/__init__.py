"""The compiler: one folder a family, one file a pass."""
