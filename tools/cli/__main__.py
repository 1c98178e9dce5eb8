"""``python -m graphpress.tools.cli``."""

from graphpress.tools.cli import main

main()
