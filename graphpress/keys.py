"""Keys of metadata_props, the only channel between passes that survives a file."""

from __future__ import annotations

BY = "graphpress.by"  # node: the pass that made it
ORIGIN = "graphpress.from"  # node: name of the node it was made for
SOURCE = "graphpress.source"  # of an initializer, as JSON: the torch parameter it was computed from, and how
SCALED = "scale"  # in SOURCE, of a parameter into which a pass has folded something
ATEN = "graphpress.aten"  # of a node that is all of one torch operator, and means a little less or more: its name
UNUSED = "graphpress.unused"  # of a model, as JSON: torch state that its graph does not read
ROLE = "graphpress.role"  # likewise: parameter, buffer, or temporary, which a state dict does not have
OPTION = "graphpress.option"  # of an input with a default: what callers may choose by it, such as a budget
SCOPE = "graphpress.scope"  # node: module path in the source program
STAGE = "graphpress.stage"  # model: its Stage
TARGET = "graphpress.target"  # model: the target it was lowered for
SCHEME = "graphpress.scheme"  # node: str of the schemes applied to it, for reports
UNSIGNED = "graphpress.unsigned"  # node: its int8 weights are stored as uint8, for signed products saturate there
ADAPTED = "graphpress.adapter"  # node or initializer, as JSON: the adapter that made it, its site, its part
SPARSITY = "graphpress.sparsity"  # node: the pattern n:m that its weight keeps, such as 2:4
PARAMETERS = "graphpress.parameters"  # in the meta of a torch module: initializer -> (its path, how it is kept there)
