import onnx_ir as ir
import pytest

from graphpress.errors import BadRequest
from graphpress.graph import selectors
from graphpress.keys import SCOPE


def node(name: str, scope: str = "") -> ir.Node:
    made = ir.Node("", "Relu", [ir.Value(name=f"{name}_x")], name=name)
    if scope:
        made.metadata_props[SCOPE] = scope
    return made


NODES = [node("/layer1/conv[0]", "layer1.conv"), node("/layer1/conv[1]"), node("/layer2/fc", "layer2.fc")]


@pytest.mark.parametrize(
    ("selector", "found"),
    [
        ("/layer1/conv[0]", [0]),  # brackets are no character class
        ("/layer1/*", [0, 1]),
        ("/layer1/conv[?]", [0, 1]),
        ("*", [0, 1, 2]),
        ("layer?.fc", [2]),  # the module path serves too
        (r"re:/layer\d/(fc|conv\[1\])", [1, 2]),
    ],
)
def test_selects_whole_names(selector: str, found: list[int]) -> None:
    assert selectors.match(selector, NODES, "ignore") == [NODES[i] for i in found]


@pytest.mark.parametrize(
    ("selector", "says"),
    [
        ("layer2.fd", "Did you mean 'layer2.fc'?"),
        ("layer1", "matches no node"),  # part of a name is not the name
        ("re:conv", "matches no node"),
        ("zzz*", "There are 5 names"),
        ("re:(", "not a regular expression"),
    ],
)
def test_says_what_is_wrong(selector: str, says: str) -> None:
    with pytest.raises(BadRequest, match="selector") as e:
        selectors.match(selector, NODES, "quantize: option 'ignore'")
    assert says in str(e.value)
