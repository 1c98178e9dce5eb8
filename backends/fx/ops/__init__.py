"""What each ONNX operator is in torch: files by family, one small function an operator, and a table ``OPS`` in each.

A function takes the operator's inputs in order and its attributes by their ONNX names. Its annotations say what it
wants of an input: ``Tensor``; ``Operand``, a tensor or, of a constant of one element, the Python number; ``Index`` and
``Number``, a number where the host has it, else a tensor; ``Ints``, ``Int``, ``Floats``, ``Float``: Python numbers on
the host, which shape arithmetic gives without touching a tensor. An input that became one in a later opset goes by the
attribute's name, so both forms fit one function. A graph is (module, what it captures, types and shapes of its results;
see ``bodies``). Keywords called ``outputs`` (how many are declared), ``in_types``, ``out_types`` (names of ONNX types,
None where unknown or absent), ``opset`` (of the domain), ``like`` (a tensor on the module's device) and ``training``
(whether the module trains; see ``modes``) are facts that the builder fills in. An operator that may have several
outputs returns a tuple and says so in its annotation. All of it is differentiable torch code that runs on any device.

``OPS`` maps an op type to its function, or ``"Softmax@1"`` to what it was from opset 1 on until the next entry.
Entries like ``"Add:carried"`` come first where an input has a type that torch holds in a wider one, those like
``"MatMul:integer"`` where the first input is an integer that torch has.
"""
