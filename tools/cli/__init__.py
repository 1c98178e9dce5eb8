"""The command line: each command is the twin of a call in graphpress."""
