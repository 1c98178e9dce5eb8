"""What the project holds itself to, checked: see `make check`."""
