"""The demo's model: a small CNN for handwritten digits, its data, and the script that made both."""
