"""Mutation testing of the files that hold formulas: `make mutants`."""
