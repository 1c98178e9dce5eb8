"""torch: the graph as a ``torch.fx.GraphModule``, one function an operator; kernels, audit."""

from graphpress.backends.fx.audit import audit as audit
from graphpress.backends.fx.back import kinds as kinds
from graphpress.backends.fx.back import trained as trained
from graphpress.backends.fx.back import unwrapped as unwrapped
from graphpress.backends.fx.build import build as build
from graphpress.backends.fx.lower import deploy as deploy
from graphpress.backends.fx.lower import execute as execute
from graphpress.backends.fx.lower import lower as lower
