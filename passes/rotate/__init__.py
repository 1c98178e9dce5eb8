"""Orthogonal changes of basis, merged into weights where they can be and computed at run time where they cannot."""
