"""ONNX Runtime: sessions, lowering, audit."""

from graphpress.backends.ort.audit import audit as audit
from graphpress.backends.ort.lower import deploy as deploy
from graphpress.backends.ort.lower import lower as lower
from graphpress.backends.ort.session import execute as execute
