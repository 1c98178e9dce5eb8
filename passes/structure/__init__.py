"""What a graph is made of, found by data flow: linear layers, norms, streams, heads, channels. Rewrites nothing."""
