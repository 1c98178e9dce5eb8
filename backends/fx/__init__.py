"""torch: the graph as a ``torch.fx.GraphModule``, one function an operator."""

from graphpress.backends.fx.build import build as build
