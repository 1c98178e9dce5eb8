"""Shape arithmetic stays on the host, whatever the sizes, and agrees with ONNX Runtime on small integers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graphpress.backends import fx as backend
from graphpress.backends import reference
from graphpress.backends.fx import host
from tests import kit
from tests.backends.fx.single import same

LENGTH = 3  # of the lists that programs below are made of
UNARY = (
    "Neg",
    "Abs",
    "Sign",
    "Identity",
    "ReduceProd",
    "ReduceSum",
    "ReduceMax",
    "ReduceMin",
    "Reverse",
    "Every",
    "Fold",
)
BINARY = ("Add", "Sub", "Mul", "Div", "Mod", "Fmod", "Min", "Max", "Where", "Both", "Either", "Concat", "Pick")

MAKING = ("Rank", "Count", "Fill", "Expand", "Tile")


class Program:
    """A random graph of shape arithmetic: its inputs are the sizes of tensors, less an offset to get signs."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw, self.lines, self.count = draw, [], 0
        self.lists: list[tuple[str, int]] = []  # name and length
        self.numbers: list[str] = []

    def new(self, expression: str) -> str:
        self.count += 1
        self.lines.append(f"v{self.count} = {expression}")
        return f"v{self.count}"

    def ints(self, *values: int) -> str:
        return (
            self.new(f"Constant<value_ints = [{', '.join(map(str, values))}]>()")
            if values
            else self.new("Constant<value = int64[0] {}>()")
        )

    def int(self, value: int) -> str:
        return self.new(f"Constant<value_int = {value}>()")

    def start(self) -> None:
        shape, offset = self.new("Shape(x)"), self.ints(*self.draw(st.lists(st.integers(0, 4), min_size=3, max_size=3)))
        self.lists.append((self.new(f"Sub({shape}, {offset})"), LENGTH))
        self.numbers.append(self.new(f"Gather({self.lists[0][0]}, {self.int(self.draw(st.integers(-3, 2)))})"))

    def step(self) -> None:
        kind = self.draw(
            st.sampled_from((*UNARY, *BINARY, "Gather", "Unsqueeze", "Squeeze", "Slice", "Constant", *MAKING))
        )
        getattr(self, f"_{kind.lower()}", lambda: self._plain(kind))()

    def operand(self) -> tuple[str, int | None]:
        """A list or a number; a list has the length that all have that meet it, or one."""
        choices = [*((n, k) for n, k in self.lists if k in (1, LENGTH)), *((n, None) for n in self.numbers)]
        return self.draw(st.sampled_from(choices))

    def keep(self, expression: str, *lengths: int | None) -> None:
        known = [k for k in lengths if k is not None]
        if known:
            self.lists.append((self.new(expression), max(known)))
        else:
            self.numbers.append(self.new(expression))

    def _plain(self, kind: str) -> None:
        (a, n), (b, m) = self.operand(), self.operand()
        if kind.startswith("Reduce"):
            keep = self.draw(st.booleans())
            self.keep(f"{kind}<keepdims = {int(keep)}>({a}{self._axes(n)})", 1 if keep and n is not None else None)
        elif kind in BINARY:
            self.keep(f"{kind}({a}, {b})", n, m)
        else:
            self.keep(f"{kind}({a})", n)

    def _axes(self, length: int | None) -> str:
        given = length is not None and self.draw(st.booleans())
        return f", {self.ints(self.draw(st.sampled_from([0, -1])))}" if given else ""

    def _div(self) -> None:
        self._divided("Div")

    def _mod(self) -> None:
        self._divided("Mod")

    def _fmod(self) -> None:
        self._divided("Mod<fmod = 1>")

    def _divided(self, kind: str) -> None:
        """By numbers that are not zero."""
        (a, n), (b, m) = self.operand(), self.operand()
        zero, other = self.int(0), self.int(self.draw(st.sampled_from([-3, 2])))
        divisor = self.new(f"Where({self.new(f'Equal({b}, {zero})')}, {other}, {b})")
        self.keep(f"{kind}({a}, {divisor})", n, m)

    def _where(self) -> None:
        (a, n), (b, m), (c, k) = self.operand(), self.operand(), self.operand()
        compare = self.draw(st.sampled_from(("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual")))
        test = self.new(f"{compare}({a}, {b})")
        test = self.new(f"Not({test})") if self.draw(st.booleans()) else test
        self.keep(f"Where({test}, {b}, {c})", n, m, k)

    def _both(self) -> None:
        self._logic("And")

    def _either(self) -> None:
        self._logic(self.draw(st.sampled_from(("Or", "Xor"))))

    def _logic(self, kind: str) -> None:
        (a, n), (b, m) = self.operand(), self.operand()
        left, right = self.new(f"Cast<to = 9>({a})"), self.new(f"Less({b}, {a})")
        self.keep(f"Cast<to = 7>({self.new(f'{kind}({left}, {right})')})", n, m)

    def _concat(self) -> None:
        parts = [self.draw(st.sampled_from(self.lists)) for _ in range(self.draw(st.integers(1, 3)))]
        names = ", ".join(n for n, _ in parts)
        self.lists.append(
            (self.new(f"Concat<axis = {self.draw(st.sampled_from([0, -1]))}>({names})"), sum(k for _, k in parts))
        )

    def _pick(self) -> None:
        name, length = self.draw(st.sampled_from(self.lists))
        if length:
            index = self.draw(st.lists(st.integers(-length, length - 1), max_size=4))
            self.lists.append((self.new(f"Gather({name}, {self.ints(*index)})"), len(index)))

    def _gather(self) -> None:
        name, length = self.draw(st.sampled_from(self.lists))
        if length:
            self.numbers.append(self.new(f"Gather({name}, {self.int(self.draw(st.integers(-length, length - 1)))})"))

    def _unsqueeze(self) -> None:
        name = self.draw(st.sampled_from(self.numbers))
        self.lists.append((self.new(f"Unsqueeze({name}, {self.ints(self.draw(st.sampled_from([0, -1])))})"), 1))

    def _squeeze(self) -> None:
        ones = [n for n, k in self.lists if k == 1]
        if ones:
            axes = f", {self.ints(0)}" if self.draw(st.booleans()) else ""
            self.numbers.append(self.new(f"Squeeze({self.draw(st.sampled_from(ones))}{axes})"))

    def _fold(self) -> None:
        name, length = self.operand()
        to = self.draw(st.sampled_from([(-1,), (length or 1,)] + ([()] if length in (None, 1) else [])))
        self.keep(f"Reshape({name}, {self.ints(*to)})", (length or 1) if to else None)

    def _rank(self) -> None:
        self.lists.append((self.new(f"Shape({self.draw(st.sampled_from(self.lists))[0]})"), 1))

    def _count(self) -> None:
        self.numbers.append(self.new(f"Size({self.draw(st.sampled_from(self.lists))[0]})"))

    def _fill(self) -> None:
        name, length = self.draw(st.sampled_from(self.lists))
        value = self.draw(st.integers(-3, 3))
        shape = self.new(f"Shape({name})")
        self.lists.append((self.new(f"ConstantOfShape<value = int64[1] {{{value}}}>({shape})"), length))

    def _expand(self) -> None:
        name, length = self.operand()
        to = self.draw(st.sampled_from([1, length] if length not in (None, 1) else [1, 2, 3]))
        self.lists.append((self.new(f"Expand({name}, {self.ints(to)})"), max(to, length or 1)))

    def _tile(self) -> None:
        name, length = self.draw(st.sampled_from([x for x in self.lists if x[1] < 10]))
        repeats = self.draw(st.integers(0, 3))
        self.lists.append((self.new(f"Tile({name}, {self.ints(repeats)})"), length * repeats))

    def _reverse(self) -> None:
        self._sliced(self.ints(-1), self.ints(-(2**63)), -1)

    def _every(self) -> None:
        self._sliced(self.ints(0), self.ints(2**63 - 1), 2)

    def _slice(self) -> None:
        step = self.draw(st.sampled_from([1, 2, -1, -2]))
        self._sliced(self.ints(self.draw(st.integers(-5, 5))), self.ints(self.draw(st.integers(-5, 5))), step)

    def _sliced(self, start: str, end: str, step: int) -> None:
        name, length = self.draw(st.sampled_from(self.lists))
        if not length:
            return
        bounds = [self.value(start), self.value(end)]
        expected = len(_onnx_slice(length, *bounds, step))
        result = self.new(f"Slice({name}, {start}, {end}, {self.ints(0)}, {self.ints(step)})")
        self.lists.append((result, expected))

    def value(self, name: str) -> int:
        line = next(line for line in self.lines if line.startswith(f"{name} = "))
        return int(line.split("[")[1].split("]")[0])

    def _constant(self) -> None:
        values = self.draw(st.lists(st.integers(-4, 4), min_size=LENGTH, max_size=LENGTH))
        self.lists.append((self.ints(*values), LENGTH))

    def text(self) -> str:
        names = [*(n for n, _ in self.lists), *self.numbers]
        outputs = [self.new(f"Identity({n})") for n in names]
        shown = ", ".join(f"int64[{k}] {n}" for n, k in zip(outputs, [*(k for _, k in self.lists)], strict=False))
        shown += "".join(f", int64 {n}" for n in outputs[len(self.lists) :])
        return f"g (float[a, b, c] x) => ({shown}) {{\n" + "\n".join(self.lines) + "\n}"


def _onnx_slice(length: int, start: int, end: int, step: int) -> range:
    """The standard's rule of effective starts and ends."""
    start, end = start + length * (start < 0), end + length * (end < 0)
    if step > 0:
        return range(min(max(start, 0), length), min(max(end, 0), length), step)
    return range(min(max(start, 0), length - 1), min(max(end, -1), length - 1), step)


@st.composite
def programs(draw: st.DrawFn) -> str:
    program = Program(draw)
    program.start()
    for _ in range(draw(st.integers(4, 16))):
        program.step()
    return program.text()


@settings(max_examples=150)
@given(programs(), st.tuples(*[st.integers(1, 5)] * 3))
def test_agrees_with_onnx_runtime(text: str, sizes: tuple[int, int, int]) -> None:
    graph = kit.parse(text)
    built = backend.build(graph)
    x = np.zeros(sizes, np.float32)
    expected = reference.execute(graph)({"x": x})
    for value, y in zip(built(torch.from_numpy(x)), expected.values(), strict=True):
        same(value.numpy(), y)
    called = {n.target for n in built.graph.nodes if n.op == "call_function"}
    assert called <= {*host.HOST.values(), host.shape, host.tensor}


def test_signs_of_quotients_and_remainders() -> None:
    pairs = [(a, b) for a in range(-7, 8) for b in range(-4, 5) if b]
    a, b = [p[0] for p in pairs], [p[1] for p in pairs]
    assert host.divide(a, b) == [int(x / y) for x, y in pairs]
    assert host.remainder(a, b) == np.mod(a, b).tolist()
    assert host.remainder(a, b, fmod=1) == np.fmod(a, b).tolist()


@pytest.mark.parametrize("step", [1, 2, -1, -2, -5])
def test_effective_starts_and_ends(step: int) -> None:
    for length in (1, 3):
        for start in (*range(-5, 6), 2**63 - 1, -(2**63)):
            for end in (*range(-5, 6), 2**63 - 1, -(2**63)):
                expected = list(_onnx_slice(length, start, end, step))
                assert host.slice_(list(range(length)), [start], [end], [0], [step]) == expected


# -- what must not touch a tensor


def _on_host(built: torch.fx.GraphModule) -> bool:
    return host.ints not in {n.target for n in built.graph.nodes}


CHAINS = {
    "merge heads": """g (float[b, s, 6] x) => (float[m, n, k] y) {
        shape = Shape(x)  zero = Constant<value_int = 0>()  one = Constant<value_int = 1>()
        b = Gather(shape, zero)  s = Gather(shape, one)  two = Constant<value_int = 2>()
        bs = Mul(b, s)  axes = Constant<value_ints = [0]>()
        flat = Unsqueeze(bs, axes)  pair = Constant<value_ints = [2, -1]>()
        to = Concat<axis = 0>(flat, pair)  y = Reshape(x, to)
    }""",
    "expand as the torch exporter writes it": """g (float[b, s, 6] x) => (float[m, n, k] y) {
        shape = Shape(x)  three = Constant<value_ints = [3]>()  minus = Constant<value_ints = [-1]>()
        wanted = Concat<axis = 0>(minus, minus, minus)  ones = ConstantOfShape<value = int64[1] {1}>(three)
        keep = Equal(wanted, minus)  to = Where(keep, ones, wanted)
        zero = Constant<value_ints = [0]>()  one = Constant<value_ints = [1]>()  first = Slice(x, zero, one, zero)
        full = Expand(first, shape)  back = Expand(full, to)  y = Add(back, x)
    }""",
    "the second half": """g (float[b, s, 6] x) => (float[m, n, k] y) {
        ends = Shape<start = 1, end = 2>(x)  two = Constant<value_ints = [2]>()  half = Div(ends, two)
        one = Constant<value_ints = [1]>()  y = Slice(x, half, ends, one)
    }""",
    "product of the rest": """g (float[b, s, 6] x) => (float[m, n] y) {
        sizes = Shape(x)  one = Constant<value_ints = [1]>()  far = Constant<value_ints = [9223372036854775807]>()
        zero = Constant<value_ints = [0]>()  rest = Slice(sizes, one, far, zero)
        axes = Constant<value_ints = [0]>()  n = ReduceProd<keepdims = 1>(rest, axes)
        minus = Constant<value_ints = [-1]>()  to = Concat<axis = 0>(minus, n)  y = Reshape(x, to)
    }""",
    "positions by range": """g (float[b, s, 6] x) => (float[m, n, k] y) {
        sizes = Shape(x)  one = Constant<value_int = 1>()  zero = Constant<value_int = 0>()
        s = Gather(sizes, one)  positions = Range(zero, s, one)  y = Gather<axis = 1>(x, positions)
    }""",
    "sizes in int32, reversed, squeezed": """g (float[b, s, 6] x) => (float[m, n, k] y) {
        sizes = Shape(x)  narrow = Cast<to = 6>(sizes)  zero = Constant<value_ints = [0]>()
        last = Constant<value_ints = [-1]>()  far = Constant<value_ints = [-9223372036854775807]>()
        back = Slice(narrow, last, far, zero, last)  wide = Cast<to = 7>(back)  y = Reshape(x, wide)
    }""",
    "the rank of a shape": """g (float[b, s, 6] x) => (float[m, n, k] y) {
        sizes = Shape(x)  rank = Shape(sizes)  ones = ConstantOfShape<value = int64[1] {1}>(rank)
        to = Max(ones, sizes)  count = Size(x)  empty = Constant<value = int64[0] {}>()
        number = Reshape(count, empty)  some = Greater(number, number)  axes = Constant<value_ints = [0]>()
        y = Expand(x, to)
    }""",
}


@pytest.mark.parametrize("name", CHAINS)
def test_chains_stay_on_the_host_and_symbolic(name: str) -> None:
    graph = kit.parse(CHAINS[name])
    built = backend.build(graph)
    assert _on_host(built)
    dynamic = ({0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO},)
    exported = torch.export.export(built, (torch.ones(4, 6, 6),), dynamic_shapes=dynamic).module()
    torch._dynamo.reset()
    compiled = torch.compile(built, fullgraph=True, dynamic=True, backend="eager")
    for b, s in ((3, 8), (4, 3)):
        x = np.random.default_rng(b).normal(size=(b, s, 6)).astype(np.float32)
        expected = reference.execute(graph)({"x": x})["y"]
        for run in (built, exported, compiled):
            same(run(torch.from_numpy(x)).numpy(), expected)
    assert built(torch.empty(3, 8, 6, device="meta")).device.type == "meta"


def test_numbers_from_tensors_are_read_once() -> None:
    graph = kit.parse(
        """g (float[4] x, int64[1] n) => (float[m] y, float[k] z) {
            zero = Constant<value_ints = [0]>()  y = Slice(x, zero, n, zero)  z = Slice(x, n, n, zero)
        }"""
    )
    built = backend.build(graph)
    assert [n.target for n in built.graph.nodes].count(host.ints) == 1
    y, z = built(torch.arange(4.0), torch.tensor([3]))
    assert (y.tolist(), z.tolist()) == ([0, 1, 2], [])


def test_numbers_of_unknown_rank() -> None:
    graph = kit.parse(
        """g (float[4, 2] x, int64[1] k, int64 axis) => (float[m, 2] y, int64[m, 2] i, float[4, 2] z) {
            same = Identity(k)  along = Identity(axis)
            y, i = TopK<axis = 0>(x, same)  z = CumSum(x, along)
        }"""
    )
    x = torch.arange(8.0).reshape(4, 2)
    y, _, z = backend.build(graph)(x, torch.tensor([2]), torch.tensor(1))
    same(y.numpy(), x.flip(0)[:2].numpy())
    same(z.numpy(), x.cumsum(1).numpy())


def test_what_is_not_shape_arithmetic_is_left_to_tensors() -> None:
    graph = kit.parse(
        """g (float[a, b] x) => (int64[1, 2] y, float[2] z) {
            sizes = Shape(x)  zero = Constant<value_ints = [0]>()
            y = Unsqueeze(sizes, zero)  z = Cast<to = 1>(sizes)
        }"""
    )
    y, z = backend.build(graph)(torch.ones(2, 3))
    same(y.numpy(), np.array([[2, 3]]))
    same(z.numpy(), np.array([2, 3], np.float32))


def test_squeeze_without_axes_of_a_known_length() -> None:
    graph = kit.parse(
        """g (float[a, 3] x) => (int64 y) {
            zero = Constant<value_ints = [0]>()  one = Constant<value_ints = [1]>()
            sizes = Shape(x)  first = Slice(sizes, zero, one)  y = Squeeze(first)
        }"""
    )
    built = backend.build(graph)
    assert host.squeeze in {n.target for n in built.graph.nodes}
    assert built(torch.ones(5, 3)).tolist() == 5


def test_constants_wrap_as_their_type_does() -> None:
    graph = kit.parse(
        """g (float[1] x) => (int32[1] y) {
            far = Constant<value_ints = [9223372036854775807]>()  y = Cast<to = 6>(far)
        }"""
    )
    assert backend.build(graph)(torch.ones(1)).tolist() == [-1]


def test_division_by_zero_fails_when_it_runs() -> None:
    graph = kit.parse(
        """g (float[1] x) => (int64[1] y) {
            zero = Constant<value_ints = [0]>()  y = Div(zero, zero)
        }"""
    )
    built = backend.build(graph)
    with pytest.raises(ZeroDivisionError):
        built(torch.ones(1))
