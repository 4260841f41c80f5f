"""The operator graph of a step, from the config alone: exact operations, bytes, liveness.

Equal blocks are counted once with their number, so a graph is as large as a model is varied. The
counts follow GenZ (arXiv 2406.01698) and LLM-Viewer (arXiv 2402.16363) with their errors mended;
docs/how_it_works/costs.md lists them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from pliant.bits import num_chunks, num_scale_groups, plane_bytes, scale_bytes
from pliant.costs.block_operators import (
    NORM_OPERATIONS,
    QUANTIZE_OPERATIONS,
    SOFTCAP_OPERATIONS,
    BlockCut,
    BlockGraph,
    codes_bytes,
)
from pliant.costs.experts import Experts
from pliant.costs.operators import Operator, Widths
from pliant.costs.step import Step
from pliant.subnet import Subnet


class Graph(msgspec.Struct, frozen=True, kw_only=True):
    """Operators of one step in the order in which they run, and what they keep in memory.

    `activation_peak_bytes` is the most that activations need at any moment, each freed after its
    last use: the least any engine needs, since ours gives each its own place. `cache_bits` are
    those of a cached value.
    """

    operators: tuple[Operator, ...]
    activation_peak_bytes: int
    cache_bits: int = 16

    @property
    def operations(self) -> int:
        """Multiplications and additions of all operators."""
        return total(self.operators, "operations")

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that the step reads, each matrix once."""
        return total(self.operators, "weight_bytes")

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values that the step reads and writes."""
        return total(self.operators, "cache_read_bytes") + total(
            self.operators, "cache_write_bytes"
        )

    @property
    def memory_bytes(self) -> int:
        """Bytes that must come from or go to memory: weights, keys, values."""
        return self.weight_bytes + self.cache_bytes


def total(operators: Iterable[Operator], field: str) -> int:
    """The sum of a figure over all times that operators run."""
    return sum(item.count * int(getattr(item, field)) for item in operators)


def step_graph(
    subnet: Subnet, step: Step, widths: Widths | None = None, experts: Experts | None = None
) -> Graph:
    """The operators of `step` through `subnet`; `experts` makes its blocks a mixture."""
    widths = widths or Widths(cache=subnet.bits.cache)
    first = _embedding(subnet, step, widths)
    operators: list[Operator] = [first]
    peak = _peak([first], {"hidden": first.output_bytes})
    for cut, count in block_cuts(subnet, experts).items():
        block = BlockGraph(subnet.spec, cut, step, widths, experts)
        block.tensors["hidden"] = first.output_bytes
        found = list(block.operators())
        peak = max(peak, _peak(found, block.tensors))
        operators += [msgspec.structs.replace(item, count=count) for item in found]
    last, tensors = _head(subnet, step, widths)
    peak = max(peak, _peak(last, {**tensors, "hidden": first.output_bytes}))
    return Graph(
        operators=(*operators, *last), activation_peak_bytes=peak, cache_bits=widths.cache.bits
    )


def block_cuts(subnet: Subnet, experts: Experts | None = None) -> dict[BlockCut, int]:
    """The distinct kept blocks of a subnet and how many there are of each."""
    spec, shape, bits = subnet.spec, subnet.shape, subnet.bits
    cuts: Counter[BlockCut] = Counter()
    for place, block in enumerate(shape.blocks):
        mixture = experts is not None and block in experts.blocks
        neurons = shape.neurons[place]
        if experts is not None and not mixture and experts.dense_neurons:
            # What a shape keeps is of an expert; a dense block keeps the same part of its own.
            neurons = max(64, round(neurons * experts.dense_neurons / spec.ffn_size / 64) * 64)
        cuts[
            BlockCut(
                groups=shape.groups[place],
                neurons=neurons,
                bits=bits.blocks[place],
                window=spec.block_windows[block],
                rotates=spec.block_ropes[block] >= 0,
                mixture=mixture,
            )
        ] += 1
    return dict(cuts)


def _embedding(subnet: Subnet, step: Step, widths: Widths) -> Operator:
    spec = subnet.spec
    values = step.num_tokens * spec.hidden_size
    row = subnet.bits.embedding * 4 * num_chunks(spec.hidden_size)
    row += 2 * num_scale_groups(spec.hidden_size)
    return Operator(
        name="embedding", kind="embed", values=values, weight_bytes=step.num_tokens * row,
        # From codes to numbers: one product and one sum each.
        operations=(2 if spec.embedding_scale == 1.0 else 3) * values,
        output_bytes=values * widths.activation_bytes, writes=("hidden",),
    )  # fmt: skip


def _head(subnet: Subnet, step: Step, widths: Widths) -> tuple[list[Operator], dict[str, int]]:
    """Final norm, logits and the choice of a token, for the rows that are wanted."""
    spec, count = subnet.spec, step.num_logits
    if count == 0:
        return [], {}
    values, width = count * spec.hidden_size, widths.activation_bytes
    tensors = {"normed": values * width, "logits": 4 * count * spec.vocab_size}
    operators = [
        Operator(
            name="final_norm", kind="norm", operations=NORM_OPERATIONS * values, values=values,
            weight_bytes=4 * spec.hidden_size, input_bytes=values * width,
            output_bytes=values * width, reads=("hidden",), writes=("normed",),
        )
    ]  # fmt: skip
    source = "normed"
    if widths.arithmetic == "int8":
        source = "normed.codes"
        tensors[source] = count * codes_bytes(spec.hidden_size)
        operators.append(
            Operator(
                name=source, kind="quantize", operations=QUANTIZE_OPERATIONS * values,
                values=values, input_bytes=values * width, output_bytes=tensors[source],
                reads=("normed",), writes=(source,),
            )
        )  # fmt: skip
    rows, columns, planes = spec.vocab_size, spec.hidden_size, subnet.bits.head
    logits = count * rows
    capped = SOFTCAP_OPERATIONS if spec.logit_softcap else 0
    return [
        *operators,
        Operator(
            name="head", kind="product", operations=2 * logits * columns,
            arithmetic=widths.arithmetic,
            weight_bytes=planes * plane_bytes(rows, columns) + scale_bytes(rows, columns),
            input_bytes=tensors[source], output_bytes=4 * logits, rows=rows, columns=columns,
            tokens=count, planes=planes, values=logits, reads=(source,), writes=("logits",),
        ),
        Operator(
            # The likeliest token: one comparison each.
            name="sampling", kind="sample", operations=(1 + capped) * logits, values=logits,
            input_bytes=4 * logits, reads=("logits",),
        ),
    ], tensors  # fmt: skip


def _peak(operators: Sequence[Operator], tensors: dict[str, int]) -> int:
    """The most bytes alive at once, each tensor from its writing to its last reading.

    Liveness is found from the last operator back. The residual stream outlives the operators
    given. What an operator both reads and writes it changes in place.
    """
    alive: set[str] = {"hidden"}
    most = tensors["hidden"]
    for item in reversed(operators):
        during = alive | set(item.reads) | set(item.writes)
        most = max(most, sum(tensors[name] for name in during))
        alive = (alive - set(item.writes)) | set(item.reads) | {"hidden"}
    return most
