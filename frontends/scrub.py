"""The texts that document a model: what cannot be read is dropped at load, what nobody else should read at save."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import onnx

_TRACE = "pkg.torch.onnx.stack_trace"
_OURS = "graphpress."
_ROOTS = "home|Users|root|tmp|usr|opt|mnt|var|private|srv|data|content|workspace"
_PATH = re.compile(rf"File \"|\.(?:py|ipynb)\b|(?:^|[\s\"'(=])(?:[A-Za-z]:\\|~/|/(?:{_ROOTS})/)")


def scrub(model: onnx.ModelProto) -> None:
    """Drop stack traces, and doc strings and metadata that name paths; what graphpress itself noted stays."""
    for message in _documented(model):
        if message.doc_string and _PATH.search(message.doc_string):
            message.ClearField("doc_string")
        props = message.metadata_props
        for i in reversed(range(len(props))):
            key = props[i].key
            if key == _TRACE or (not key.startswith(_OURS) and _PATH.search(props[i].value)):
                del props[i]


def drop_undecodable(model: onnx.ModelProto) -> None:
    """Drop documentation that is not UTF-8: protobuf hands it out as bytes and would not take it back."""
    for message in _documented(model):
        if isinstance(message.doc_string, bytes):
            message.ClearField("doc_string")
        for i in reversed(range(len(message.metadata_props))):
            entry = message.metadata_props[i]
            if isinstance(entry.key, bytes) or isinstance(entry.value, bytes):
                del message.metadata_props[i]
    for field in ("producer_name", "producer_version", "domain"):
        if isinstance(getattr(model, field), bytes):
            model.ClearField(field)


def _documented(model: onnx.ModelProto) -> Iterator[Any]:
    """Every message with a doc string and metadata."""
    yield model
    bodies: list[Any] = [model.graph, *model.functions]
    while bodies:
        body = bodies.pop()
        yield body
        yield from body.value_info
        if isinstance(body, onnx.GraphProto):
            yield from (*body.input, *body.output, *body.initializer)
        for node in body.node:
            yield node
            for attr in node.attribute:
                if attr.type in (attr.GRAPH, attr.GRAPHS):
                    bodies += [attr.g, *attr.graphs] if attr.type == attr.GRAPH else attr.graphs
