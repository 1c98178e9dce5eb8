"""torch modules in: traced and translated by torch's own exporter, tidied, and given their names back."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import onnx_ir.passes.common as common

from graphpress.errors import BadRequest, Unsupported
from graphpress.frontends import (
    torch_attention,
    torch_batchnorm,
    torch_checks,
    torch_erfinv,
    torch_errors,
    torch_fixed,
    torch_grouped,
    torch_hits,
    torch_names,
    torch_numbers,
    torch_order,
    torch_registry,
    torch_results,
    torch_scatter,
    torch_shapes,
    torch_signature,
    torch_squeeze,
    torch_tidy,
    torch_transformer,
    torch_truth,
    torch_weights,
)
from graphpress.graph import edit, randomness, verify

if TYPE_CHECKING:
    import torch

_DRAWN = 21  # the last at which ONNX Runtime 1.32 has kernels of these
OPSET = 23  # the first that has attention and RMS norm as single operators


def trace(
    module: torch.nn.Module | torch.export.ExportedProgram,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    *,
    fold_batchnorm: bool = True,
    opset: int = OPSET,
) -> ir.Model:
    """A torch module as a graph of inference, under the names it has in torch.

    Initializers have the names of their parameters and buffers. One that was computed from parameters says so in
    ``metadata_props["graphpress.source"]``, as JSON ``{"parameter": "fc.weight", "transform": "transpose"}``. Nodes
    carry their module's path in ``graphpress.scope`` and are called ``<module path>/<operator>``. Outputs are called
    after the keys of the dict that the module returns, ``output`` or ``output_<i>``. How the module is called, what it
    returns besides tensors and what of its state the graph does not read is noted for the torch backend.

    The module is traced in evaluation mode and stays as it is. Its weights are not copied: the graph reads the same
    memory, unless they lie on another device than the CPU. Trace again after training.

    A loop over the places where a mask holds, as routers go over the experts that were hit, runs over all places in the
    graph, where the module gives the same bit for bit so on the example and on one that hits few: tried, not proved.

    Args:
        module: An nn.Module (an fx.GraphModule is one), or an ExportedProgram.
        args: Example inputs: positional arguments of ``forward``; a tensor alone is the only one.
        kwargs: Its keyword arguments.
        dynamic_shapes: Which dimensions vary, as torch.export takes them: by argument name or position,
            ``{"x": {0: torch.export.Dim("batch")}}``. Their names are kept.
        fold_batchnorm: Fold BatchNormalization into the convolution or linear layer before it, which keeps a note of
            its statistics for data-free methods.
        opset: ONNX opset of the graph; below 23, attention and RMS norm come as the many operators they consist of.
            A module that draws random numbers gets 21 at most: ONNX Runtime draws none at 22 and 23.

    Raises:
        Unsupported: The module cannot be traced or has an operator without a form in ONNX; names the module's path
            and the line of its source.
        BadRequest: The arguments do not fit the module.
    """
    torch = _import_torch()
    args, kwargs = _arguments(torch, module, args, kwargs, dynamic_shapes)
    axes = torch_shapes.of_leaves(module, args, kwargs, dynamic_shapes)
    plain = torch_signature.plain_outputs(torch, module)
    with _quiet(), torch_registry.kept(), _evaluating(torch, module), torch.no_grad(), plain as constants:
        try:
            program = _exported(torch, module, args, kwargs, dynamic_shapes, opset)
            if opset > _DRAWN and randomness.draws(program.model):
                program = _exported(torch, module, args, kwargs, dynamic_shapes, _DRAWN)
        except Exception as e:
            raise torch_errors.refusal(e, module) from e
        model = program.model
        torch_names.name_chosen_dimensions(model, program.exported_program, axes)
        torch_checks.check_traced(model, program.exported_program, axes)
        torch_names.name_dimensions(model)
        inputs = torch_results.call_inputs(model, program.exported_program, module)
        _tidy(model, program.exported_program, fold_batchnorm)
    _name(model, program.exported_program, inputs)
    torch_signature.note(model, program.exported_program, module, constants)
    verify.check(model)
    return model


def _exported(
    torch: Any, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any, opset: int
) -> Any:
    """What torch's exporter makes, with forms of ours where it has none, or one that ONNX Runtime does not take."""
    found: dict[Any, Any] = {}
    for room in (torch_attention, torch_erfinv, torch_grouped, torch_order, torch_scatter, torch_squeeze, torch_truth):
        found |= room.table(torch, opset)

    def export(translations: dict[Any, Any]) -> Any:
        # Without keyword arguments, torch takes a trailing dict of the positional ones for them.
        return torch.onnx.export(
            module, args if kwargs else (*args, {}), kwargs=kwargs, dynamic_shapes=dynamic_shapes,
            dynamo=True, optimize=False, verbose=False, opset_version=opset, custom_translation_table=translations,
        )  # fmt: skip

    try:
        return export(found)
    except Exception as e:
        if torch_errors.by_value(e) and torch_fixed.fixed(torch, module):
            with torch_fixed.numbers(torch, module):
                return export(found)
        if torch_errors.by_value(e) and torch_hits.harmless(torch, module, args, kwargs):
            with torch_hits.every(torch):
                return export(found)
        if not torch_numbers.refused(e):
            raise
    return export(found | torch_numbers.table(torch, opset))


def _name(model: ir.Model, program: Any, inputs: Sequence[str]) -> None:
    """Give everything the name it has in torch."""
    for value, name in zip(model.graph.inputs, inputs, strict=True):
        value.name = name  # of one that is returned as it is, the passes make the output's
    torch_names.name_outputs(model, program)
    torch_names.name_nodes(model)
    torch_weights.name_constants(model)
    torch_weights.note_unused(model, program)
    edit.index(model)


def _import_torch() -> Any:
    try:
        import torch
    except ImportError as e:
        fix = "Run `pip install 'graphpress[torch]'`."
        raise Unsupported("tracing a module needs torch, which is not installed", fix=fix) from e
    return torch


def _arguments(
    torch: Any, module: Any, args: Any, kwargs: Mapping[str, Any] | None, dynamic_shapes: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments in the exporter's form.

    Raises:
        BadRequest: ``module`` is nothing that can be traced, or the arguments are not for it.
    """
    if isinstance(module, torch.export.ExportedProgram):
        if len(args) or kwargs or dynamic_shapes:
            what = "an ExportedProgram has its inputs and dynamic shapes already"
            raise BadRequest(what, where="trace", fix="Give them to torch.export.export.")
        return (), {}
    if isinstance(module, torch.jit.ScriptModule) or not isinstance(module, torch.nn.Module):
        what = f"not an nn.Module, ExportedProgram or fx.GraphModule but {type(module).__name__}"
        raise BadRequest(what, where="trace", fix="Give the module itself, or a function wrapped in one.")
    torch_results.register((args, kwargs))
    tensors = [*module.named_parameters(), *module.named_buffers()]
    if nowhere := [name for name, tensor in tensors if tensor.is_meta]:
        what = "its weights are on the meta device and have no values"
        raise BadRequest(what, where=f"parameter {nowhere[0]!r}", fix="Load the weights first.")
    args = (args,) if isinstance(args, torch.Tensor) else tuple(args)
    return _set_apart(torch, args, dict(kwargs or {}))


def _set_apart(torch: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with a copy of each tensor that comes again: torch would trace all its places as one input."""
    from torch.utils import _pytree as pytree

    leaves, spec = pytree.tree_flatten((args, kwargs))
    first = {id(leaf): i for i, leaf in reversed(list(enumerate(leaves))) if isinstance(leaf, torch.Tensor)}
    again = [i for i, leaf in enumerate(leaves) if first.get(id(leaf), i) != i]
    if not again:
        return args, kwargs
    for i in again:
        leaves[i] = leaves[i].clone()
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    return args, kwargs


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nothing that torch prints, warns of or logs on the way reaches the user; errors are raised, not printed."""
    with contextlib.ExitStack() as stack:
        stack.callback(logging.disable, logging.root.manager.disable)
        logging.disable(logging.CRITICAL)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        yield


@contextlib.contextmanager
def _evaluating(torch: Any, module: Any) -> Iterator[None]:
    """Every submodule in evaluation mode, and in its own again afterwards.

    The flag is set directly: ``eval`` may be overridden to do more, and some graph modules refuse it.
    """
    parts = list(module.modules()) if isinstance(module, torch.nn.Module) else []
    modes = [part.training for part in parts]
    try:
        for part in parts:
            part.training = False
        with torch_transformer.traceable(torch, module), torch_fixed.in_place(torch):
            yield
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode


def _tidy(model: ir.Model, program: Any, fold_batchnorm: bool) -> None:
    """Fold what is constant and drop what the exporter wrote for nothing; weights keep track of their parameters."""
    from onnxscript import optimizer, rewriter

    common.InlinePass()(model)
    common.CommonSubexpressionEliminationPass()(model)
    weights = torch_weights.weights(model, program)
    batchnorms: dict[str, torch_batchnorm.Statistics] = {}
    for _ in range(2):  # rules make constants, constants make rules match
        optimizer.fold_constants(model, onnx_shape_inference=True, should_fold=weights.should_fold)
        torch_weights.drop_zero_biases(model, weights)
        batchnorms |= torch_batchnorm.outputs(model)
        rewriter.rewrite(model, _rules(fold_batchnorm))
        torch_batchnorm.keep(model, batchnorms)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    torch_tidy.tidy(model)
    common.LiftSubgraphInitializersToMainGraphPass()(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    common.OutputFixPass()(model)
    common.NameFixPass()(model)
    weights.restore(model)


def _rules(fold_batchnorm: bool) -> list[Any]:
    """onnxscript's rules for what its exporter writes."""
    from onnxscript.rewriter.rules import common as rules

    found = [
        rules.mul_by_1_rule, rules.add_0_rule, rules.sub_0_rule, rules.div_by_1_rule, rules.dropout_zero_rule,
        rules.dropout_inference_rule, rules.two_reshapes_matmul_reshape_rule, rules.one_reshape_matmul_reshape_rule,
        rules.cast_constant_of_shape_rule, rules.cast_constant_of_shape_without_value_rule, rules.collapse_slice_rule,
        rules.collapse_slice2_rule, rules.materialize_reshape_shape_rule, rules.min_min_rule, rules.max_max_rule,
        rules.min_max_rule, rules.max_min_rule, rules.successive_relu_rule, rules.successive_clip_rule,
        rules.successive_clip_relu_rule, rules.successive_relu_clip_rule, rules.cast_cast_rule, rules.no_op_cast_rule,
        rules.no_op_expand_rule, rules.flatten_to_reshape_rule, rules.reshape_reshape_rule, rules.slice_split_rule,
        rules.no_op_transpose_rule, rules.transpose_transpose_rule, rules.unsqueeze_unsqueeze_rule,
        rules.squeeze_reshape_1d_rule, rules.no_op_dynamic_scatter_nd_rule, rules.no_op_static_scatter_nd_rule,
    ]  # fmt: skip
    if fold_batchnorm:
        found += [
            rules.fuse_batchnorm_into_conv_rule, rules.fuse_batchnorm_into_conv_transpose_rule,
            rules.fuse_batchnorm_into_gemm_rule,
        ]  # fmt: skip
    return found
