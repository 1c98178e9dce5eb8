"""Quant-node folding: the fewest conversions that mean the same.

In order: ``share-scales`` (while Relu and Clip still stand in the graph), ``absorb-clip``, ``move-qdq``,
``cancel-qdq``, ``fold-bias`` (after everything that may change the scale of an activation), ``fold-weights``.
"""
