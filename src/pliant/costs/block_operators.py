"""The operators of one block, from its numbers alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from pliant.bits import BlockBits, plane_bytes, scale_bytes
from pliant.costs.experts import Experts
from pliant.costs.operators import Operator, Widths
from pliant.costs.step import Step
from pliant.spec import ModelSpec

#: Multiplications and additions per number written; exp, tanh and roots count as one.
NORM_OPERATIONS = 4  # square, add to the sum, times the inverse root, times the weight
QUANTIZE_OPERATIONS = 3  # largest so far, times the inverse scale, round
ROTATE_OPERATIONS = 3  # of a pair: four products, two sums
SOFTMAX_OPERATIONS = 4  # times the scale, largest so far, minus it and exp, add to the sum
SOFTCAP_OPERATIONS = 3  # divide, tanh, multiply
GATE_OPERATIONS = 5  # exp, add, divide (the logistic function), times gate, times up


class BlockCut(msgspec.Struct, frozen=True, kw_only=True):
    """What decides the cost of one kept block; blocks with equal values cost the same."""

    groups: int
    neurons: int
    bits: BlockBits
    window: int
    rotates: bool
    mixture: bool = False


class BlockGraph:
    """Builds the operators of one block for one step."""

    def __init__(
        self, spec: ModelSpec, cut: BlockCut, step: Step, widths: Widths, experts: Experts | None
    ) -> None:
        self.spec, self.cut, self.step, self.widths = spec, cut, step, widths
        self.experts = experts if cut.mixture else None
        self.tokens = step.num_tokens
        #: Bytes of each tensor that operators write.
        self.tensors: dict[str, int] = {}

    def operators(self) -> Iterator[Operator]:
        """All operators in the order in which they run."""
        spec, cut = self.spec, self.cut
        hidden = self.tokens * spec.hidden_size
        if cut.groups:
            yield from self._attention_half(hidden)
        if cut.neurons:
            yield self._norm("mlp_norm", hidden, spec.hidden_size, "hidden", "normed")
            yield from self._mixture() if self.experts else self._mlp(cut.neurons)
            yield from self._residual("mlp_post_norm", "down", hidden)

    def _attention_half(self, hidden: int) -> Iterator[Operator]:
        spec, cut = self.spec, self.cut
        query, key = self.tokens * cut.groups * spec.group_size, self.tokens * self._key_size
        yield self._norm("attention_norm", hidden, spec.hidden_size, "hidden", "normed")
        yield from self._products("normed", ("q", "k", "v"))
        if spec.qk_norm:
            yield self._norm("q_norm", query, spec.head_dim, "q", "q")
            yield self._norm("k_norm", key, spec.head_dim, "k", "k")
        if cut.rotates:
            yield self._rotate(query + key)
        yield self._store(2 * key)
        yield from self._attention()
        yield from self._products("attended", ("o",))
        yield from self._residual("attention_post_norm", "o", hidden)

    @property
    def _key_size(self) -> int:
        return self.cut.groups * self.spec.head_dim

    def _tensor(self, name: str, values: int, value_bytes: int = 0) -> int:
        """Notes that `name` holds `values` numbers; returns its bytes."""
        self.tensors[name] = values * (value_bytes or self.widths.activation_bytes)
        return self.tensors[name]

    def _norm(self, name: str, values: int, size: int, source: str, target: str) -> Operator:
        num_bytes = self._tensor(target, values)
        return Operator(
            name=name, kind="norm", operations=NORM_OPERATIONS * values, weight_bytes=4 * size,
            input_bytes=num_bytes, output_bytes=num_bytes, values=values, reads=(source,),
            writes=(target,),
        )  # fmt: skip

    def _products(self, source: str, names: tuple[str, ...]) -> Iterator[Operator]:
        """Products that share one input, which is quantized once where they are done in int8."""
        spec, cut = self.spec, self.cut
        shapes = {name: spec.matrix_shape(name, cut.groups, cut.neurons) for name in names}
        columns = shapes[names[0]][1]
        if self.widths.arithmetic == "int8":
            yield self._quantize(source, self.tokens, columns)
            source = f"{source}.codes"
        for name, (rows, _) in shapes.items():
            planes = getattr(cut.bits, name)
            yield self._product(name, rows, columns, planes, source)
            if spec.has_bias(name):
                yield Operator(
                    name=f"{name}.bias", kind="bias", operations=self.tokens * rows,
                    weight_bytes=4 * rows, values=self.tokens * rows, reads=(name,), writes=(name,),
                )  # fmt: skip

    def _quantize(self, source: str, tokens: int, columns: int) -> Operator:
        values = tokens * columns
        size = self._tensor(f"{source}.codes", tokens * codes_bytes(columns), 1)
        return Operator(
            name=f"{source}.codes", kind="quantize", operations=QUANTIZE_OPERATIONS * values,
            input_bytes=values * self.widths.activation_bytes, output_bytes=size, values=values,
            reads=(source,), writes=(f"{source}.codes",),
        )  # fmt: skip

    def _product(
        self, name: str, rows: int, columns: int, planes: int, source: str,
        tokens: int | None = None, matrices: float = 1,
    ) -> Operator:  # fmt: skip
        """`tokens` rows through a matrix; of a mixture, through `matrices` of its matrices."""
        tokens = self.tokens if tokens is None else tokens
        stored = planes * plane_bytes(rows, columns) + scale_bytes(rows, columns)
        return Operator(
            name=name, kind="product", operations=2 * tokens * rows * columns,
            arithmetic=self.widths.arithmetic, weight_bytes=round(stored * matrices),
            input_bytes=self.tensors.get(source, 0),
            output_bytes=self._tensor(name, tokens * rows), rows=rows, columns=columns,
            tokens=tokens, planes=planes, values=tokens * rows, reads=(source,), writes=(name,),
        )  # fmt: skip

    def _rotate(self, values: int) -> Operator:
        size = values * self.widths.activation_bytes
        return Operator(
            name="rotation", kind="rotate", operations=ROTATE_OPERATIONS * values, values=values,
            input_bytes=size, output_bytes=size, reads=("q", "k"), writes=("q", "k"),
        )  # fmt: skip

    def _store(self, values: int) -> Operator:
        written = 2 * self.tokens * self.cut.groups * self.widths.entry_bytes(self.spec.head_dim)
        return Operator(
            name="cache", kind="store", operations=values, values=values,
            input_bytes=values * self.widths.activation_bytes, cache_write_bytes=written,
            reads=("k", "v"),
        )  # fmt: skip

    def _attention(self) -> Iterator[Operator]:
        """Scores, softmax and the weighted sum; scores live in blocks of a cache's size."""
        spec, cut, step = self.spec, self.cut, self.step
        heads = cut.groups * spec.heads_per_group
        visible = step.sequences * step.visible(cut.window)
        first = step.cached - step.cached_read(cut.window)
        held = self.widths.cache.read_bytes(spec.head_dim, first, step.cached)
        read = step.sequences * cut.groups * held
        query = self.tokens * heads * spec.head_dim
        sizes: dict[str, Any] = {"visible": visible, "heads": heads, "groups": cut.groups}
        yield Operator(
            name="scores", kind="scores", operations=2 * heads * spec.head_dim * visible,
            cache_read_bytes=read, input_bytes=query * self.widths.activation_bytes,
            reads=("q",), **sizes,
        )  # fmt: skip
        capped = SOFTCAP_OPERATIONS if spec.attention_softcap else 0
        yield Operator(
            name="softmax", kind="softmax", values=heads * visible,
            operations=(SOFTMAX_OPERATIONS + capped) * heads * visible, reads=("q",), **sizes,
        )  # fmt: skip
        yield Operator(
            name="mix", kind="mix", operations=2 * heads * spec.head_dim * visible + query,
            cache_read_bytes=read, output_bytes=self._tensor("attended", query), reads=("q",),
            writes=("attended",), **sizes,
        )  # fmt: skip

    def _residual(self, norm: str, source: str, values: int) -> Iterator[Operator]:
        if self.spec.post_norms:
            yield self._norm(norm, values, self.spec.hidden_size, source, source)
        size = values * self.widths.activation_bytes
        yield Operator(
            name="residual", kind="add", operations=values, values=values, input_bytes=2 * size,
            output_bytes=size, reads=("hidden", source), writes=("hidden",),
        )  # fmt: skip

    def _mlp(self, neurons: int) -> Iterator[Operator]:
        yield from self._products("normed", ("gate", "up"))
        yield self._gated(self.tokens * neurons)
        yield from self._products("gate", ("down",))

    def _gated(self, values: int) -> Operator:
        size = values * self.widths.activation_bytes
        return Operator(
            name="gated", kind="gate", operations=GATE_OPERATIONS * values, values=values,
            input_bytes=2 * size, output_bytes=size, reads=("gate", "up"), writes=("gate",),
        )  # fmt: skip

    def _mixture(self) -> Iterator[Operator]:
        """Router, the experts that tokens choose, and what all tokens share."""
        experts = self.experts
        assert experts is not None
        spec, cut, bits = self.spec, self.cut, self.cut.bits
        yield self._product("router", experts.count, spec.hidden_size, 8, "normed")
        if self.widths.arithmetic == "int8":
            yield self._quantize("normed", self.tokens, spec.hidden_size)
        source = "normed.codes" if self.widths.arithmetic == "int8" else "normed"
        parts = [("", cut.neurons, experts.active, experts.distinct(self.tokens))]
        if experts.shared_neurons:
            parts.append(("shared.", experts.shared_neurons, 1, 1.0))
        for prefix, neurons, active, matrices in parts:
            rows = self.tokens * active
            for name in ("gate", "up"):
                planes = getattr(bits, name)
                yield self._product(
                    prefix + name, neurons, spec.hidden_size, planes, source, rows, matrices
                )
            gate, up = prefix + "gate", prefix + "up"
            gated = self._gated(rows * neurons)
            yield msgspec.structs.replace(gated, reads=(gate, up), writes=(gate,))
            if self.widths.arithmetic == "int8":
                yield self._quantize(gate, rows, neurons)
            down = f"{gate}.codes" if self.widths.arithmetic == "int8" else gate
            yield self._product(
                prefix + "down", spec.hidden_size, neurons, bits.down, down, rows, matrices
            )
        yield self._combined(experts)

    def _combined(self, experts: Experts) -> Operator:
        """The outputs of a token's experts, times what the router gives each, added up."""
        values = self.tokens * self.spec.hidden_size
        parts = experts.active + (1 if experts.shared_neurons else 0)
        size = values * self.widths.activation_bytes
        down = ("down", "shared.down") if experts.shared_neurons else ("down",)
        return Operator(
            name="experts", kind="add", operations=2 * parts * values, values=values,
            input_bytes=parts * size, output_bytes=size, reads=("router", *down), writes=("down",),
        )  # fmt: skip


def codes_bytes(columns: int) -> int:
    """Bytes of a row as int8 codes: whole groups of 64 with an fp32 scale and an int32 sum."""
    return -(-columns // 64) * (64 + 8)
