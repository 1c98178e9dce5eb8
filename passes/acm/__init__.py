"""Adaptive Computation Modules: layers whose work depends on the token (arXiv:2312.10193)."""
