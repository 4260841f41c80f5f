"""`Supernet`: one torch decoder that runs any subnet of its weights without copying them.

This is the readable definition of what pliant's models compute; the engine is tested against it.

Shape suffixes: B sequences, T new tokens, S all tokens so far, D hidden size, V vocabulary,
N query heads, G KV groups, H entries of a head, F neurons, O rows and I columns of a matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping

import msgspec
import torch
from torch.nn import functional

from pliant.errors import CheckpointError, UsageError
from pliant.models.attention import KeyValueCache, attend, rotate, rotation
from pliant.models.checkpoint import Checkpoint
from pliant.models.permutation import permuted_block
from pliant.models.smol import ShapeAdapters
from pliant.shape import SubnetShape
from pliant.shape.orders import WidthOrders
from pliant.spec import BLOCK_MATRICES, Activation, ModelSpec
from pliant.spec.checkpoint_names import checkpoint_names

#: Called with a name and the tensor that is about to enter that matrix: "q" (which `k` and `v`
#: share), "o", "gate" (which `up` shares) or "down".
Observer = Callable[[str, torch.Tensor], None]

#: Standard deviation of fresh weights (GPT-2); outputs onto the residual stream get less.
_INITIAL_DEVIATION = 0.02


class Supernet:
    """The dense ordered model: its `spec` and its `weights` by pliant name.

    Weights are plain tensors, so an optimizer takes `parameters()` and tuning replaces entries.
    `shape` is what is stored: everything of the spec, or what `sliced` has left.

    With `adapters` the weights depend on the whole shape: `forward` sees to that, and `at(shape)`
    gives the model whose blocks are those of one shape.
    """

    def __init__(
        self, spec: ModelSpec, weights: MutableMapping[str, torch.Tensor], shape: SubnetShape
    ):
        self.spec = spec
        self.weights = weights
        self.shape = shape
        self.adapters: ShapeAdapters | None = None
        #: `a_RI, b_OR` of updates that are added to matrices, by name; what `at` has made.
        self.low_rank: Mapping[str, tuple[torch.Tensor, torch.Tensor]] = {}

    # --- making one -----------------------------------------------------------------------------

    @classmethod
    def from_checkpoint(
        cls, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32
    ) -> Supernet:
        """Read all weights of a checkpoint, one tensor at a time, into `dtype`."""
        weights = {name: tensor.to(dtype) for name, tensor in checkpoint.tensors()}
        return cls.from_tensors(checkpoint.spec, weights)

    @classmethod
    def from_tensors(cls, spec: ModelSpec, tensors: Mapping[str, torch.Tensor]) -> Supernet:
        """A supernet over these tensors (not copied), named and shaped as `spec.tensors()`."""
        expected = spec.tensors()
        if set(tensors) != set(expected):
            name = min(set(tensors) ^ set(expected))
            state = "is not part of the model" if name in tensors else "is missing"
            raise CheckpointError(f"The tensor {name} {state}.")
        for name, shape in expected.items():
            if tuple(tensors[name].shape) != shape:
                raise CheckpointError(
                    f"{name} has shape {list(tensors[name].shape)}; {list(shape)} is needed."
                )
        return cls(spec, {name: tensors[name] for name in expected}, SubnetShape.full(spec))

    @classmethod
    def initialized(cls, spec: ModelSpec, seed: int) -> Supernet:
        """Fresh fp32 weights for training from scratch, ready for gradients.

        Matrices are normal with deviation 0.02, those that add to the residual stream are smaller
        by the root of the number of additions (GPT-2); norms multiply by 1, biases are 0.
        """
        generator = torch.Generator().manual_seed(seed)
        weights = {}
        for name, shape in spec.tensors().items():
            if len(shape) == 2:
                onto_residual = name.endswith((".o", ".down"))
                deviation = _INITIAL_DEVIATION / math.sqrt(2 * spec.num_blocks * onto_residual or 1)
                weight = torch.randn(shape, generator=generator) * deviation
            else:
                value = 0.0 if name.endswith(".bias") else 1 - spec.norm_offset
                weight = torch.full(shape, value)
            weights[name] = weight.requires_grad_()
        return cls.from_tensors(spec, weights)

    # --- running it -----------------------------------------------------------------------------

    def forward(
        self,
        tokens_BT: torch.Tensor,
        shape: SubnetShape | None = None,
        cache: KeyValueCache | None = None,
    ) -> torch.Tensor:
        """Logits `[B, T, V]`, float32, of int64 tokens under `shape` (default: all that is stored).

        With a `cache` the tokens continue those it holds, and are added to it.
        """
        shape = self._checked(shape)
        hidden_BTD, adapted = self.embed(tokens_BT), self.at(shape)
        for block, groups, neurons in zip(shape.blocks, shape.groups, shape.neurons, strict=True):
            hidden_BTD = adapted.block(block, hidden_BTD, groups, neurons, cache=cache)
        return self.logits(hidden_BTD)

    __call__ = forward

    def at(self, shape: SubnetShape | None = None, noise_E: torch.Tensor | None = None) -> Supernet:
        """The same weights with the adapters of `shape`; itself where there are none.

        `noise_E` moves the choice of experts, as training does (`ShapeAdapters.gates`).
        """
        if self.adapters is None:
            return self
        adapted = self.sharing(self.weights)
        adapted.low_rank = self.adapters.low_rank(self._checked(shape), noise_E)
        adapted.adapters = None
        return adapted

    def without_adapters(self) -> Supernet:
        """The same weights alone."""
        return Supernet(self.spec, self.weights, self.shape)

    def sharing(self, weights: MutableMapping[str, torch.Tensor]) -> Supernet:
        """This model with other weights of the same names, and its adapters."""
        other = Supernet(self.spec, weights, self.shape)
        other.adapters, other.low_rank = self.adapters, self.low_rank
        return other

    def embed(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        """The hidden state `[B, T, D]` that enters the first block."""
        rows_BTD = functional.embedding(tokens_BT, self.weights["embedding"])
        return rows_BTD * self.spec.embedding_scale if self.spec.embedding_scale != 1 else rows_BTD

    def block(
        self,
        index: int,
        hidden_BTD: torch.Tensor,
        groups: int | None = None,
        neurons: int | None = None,
        *,
        cache: KeyValueCache | None = None,
        observe: Observer | None = None,
    ) -> torch.Tensor:
        """What block `index` of the dense model makes of a hidden state `[B, T, D]`.

        Only its first `groups` KV groups and `neurons` neurons take part (default: all stored);
        0 of them leave out the attention or the MLP.
        `observe("q", x)`, then for "o", "gate" and "down", sees their inputs, `[B, T, I]`.
        """
        weights = self._adapted_weights(index, self.block_weights(index, groups, neurons))
        if "q" in weights:
            mixed_BTD = self._attention(index, weights, hidden_BTD, cache, observe)
            hidden_BTD = hidden_BTD + self._post_norm(weights, "attention_post_norm", mixed_BTD)
        if "gate" in weights:
            mapped_BTD = self._mlp(weights, hidden_BTD, observe)
            hidden_BTD = hidden_BTD + self._post_norm(weights, "mlp_post_norm", mapped_BTD)
        return hidden_BTD

    def logits(self, hidden_BTD: torch.Tensor) -> torch.Tensor:
        """Logits `[B, T, V]`, float32, of the hidden state that left the last block.

        (A supernet converted to float64, as the tests of exactness do, stays in float64.)
        """
        normed_BTD = self._norm(hidden_BTD, self.weights["final_norm"])
        head = self.weights["embedding" if self.spec.tied_embeddings else "head"]
        logits_BTV = _widened(functional.linear(normed_BTD, head))
        cap = self.spec.logit_softcap
        return cap * torch.tanh(logits_BTV / cap) if cap else logits_BTV

    def block_weights(
        self, index: int, groups: int | None = None, neurons: int | None = None
    ) -> dict[str, torch.Tensor]:
        """Tensors of one block by name within it, cut to prefixes: views of `weights`."""
        place = self.shape.blocks.index(index)
        shapes = self.spec.block_tensors(
            self.shape.groups[place] if groups is None else groups,
            self.shape.neurons[place] if neurons is None else neurons,
        )
        return {
            name: self.weights[f"blocks.{index}.{name}"][tuple(map(slice, shape))]
            for name, shape in shapes.items()
        }

    def _adapted_weights(
        self, index: int, weights: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """With the factors of each update, as `q.a` and `q.b`, cut to what is kept of `q`."""
        prefix = f"blocks.{index}."
        for matrix in BLOCK_MATRICES if self.low_rank else ():
            if prefix + matrix in self.low_rank and matrix in weights:
                rows, columns = weights[matrix].shape
                a_RI, b_OR = self.low_rank[prefix + matrix]
                weights[f"{matrix}.a"], weights[f"{matrix}.b"] = a_RI[:, :columns], b_OR[:rows]
        return weights

    def _attention(
        self,
        index: int,
        weights: Mapping[str, torch.Tensor],
        hidden_BTD: torch.Tensor,
        cache: KeyValueCache | None,
        observe: Observer | None,
    ) -> torch.Tensor:
        spec = self.spec
        normed_BTD = self._norm(hidden_BTD, weights["attention_norm"])
        if observe:
            observe("q", normed_BTD)

        query_BTNH, key_BTGH, value_BTGH = (
            _linear(weights, matrix, normed_BTD).view(*normed_BTD.shape[:2], -1, spec.head_dim)
            for matrix in ("q", "k", "v")
        )
        if spec.qk_norm:
            query_BTNH = self._norm(query_BTNH, weights["q_norm"])
            key_BTGH = self._norm(key_BTGH, weights["k_norm"])
        query_BNTH, key_BGTH = query_BTNH.transpose(1, 2), key_BTGH.transpose(1, 2)
        value_BGTH = value_BTGH.transpose(1, 2)

        if spec.block_ropes[index] >= 0:
            start = cache.length(index) if cache else 0
            rope, count = spec.ropes[spec.block_ropes[index]], hidden_BTD.shape[1]
            turn = rotation(rope, spec.head_dim, start, count, hidden_BTD.device)
            query_BNTH, key_BGTH = rotate(query_BNTH, *turn), rotate(key_BGTH, *turn)
        if cache is not None:
            key_BGTH, value_BGTH = cache.extend(index, key_BGTH, value_BGTH)

        mixed_BNTH = attend(query_BNTH, key_BGTH, value_BGTH, spec.attention_scale,
                            spec.attention_softcap, spec.block_windows[index])  # fmt: skip
        mixed_BTI = mixed_BNTH.transpose(1, 2).flatten(2)
        if observe:
            observe("o", mixed_BTI)
        return _linear(weights, "o", mixed_BTI)

    def _mlp(
        self,
        weights: Mapping[str, torch.Tensor],
        hidden_BTD: torch.Tensor,
        observe: Observer | None,
    ) -> torch.Tensor:
        normed_BTD = self._norm(hidden_BTD, weights["mlp_norm"])
        if observe:
            observe("gate", normed_BTD)
        gate_BTF = _activate(self.spec.activation, _linear(weights, "gate", normed_BTD))
        gated_BTF = gate_BTF * _linear(weights, "up", normed_BTD)
        if observe:
            observe("down", gated_BTF)
        return _linear(weights, "down", gated_BTF)

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """RMSNorm over the last axis (arXiv 1910.07467), in float32 even where `x` is bfloat16."""
        wide = _widened(x)
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.spec.norm_epsilon)
        return (wide * (_widened(weight) + self.spec.norm_offset)).to(x.dtype)

    def _post_norm(
        self, weights: Mapping[str, torch.Tensor], name: str, x: torch.Tensor
    ) -> torch.Tensor:
        return self._norm(x, weights[name]) if name in weights else x

    # --- reshaping it ---------------------------------------------------------------------------

    def sliced(self, shape: SubnetShape) -> Supernet:
        """The subnet of `shape` as a model of its own: kept weights copied, blocks renumbered.

        Its spec states the largest width of any block; with uniform widths that is every block's.
        Adapters of the shape are added to the weights they belong to.
        """
        shape = self._checked(shape)
        updates = self.at(shape).low_rank
        spec = msgspec.structs.replace(
            self.spec,
            num_blocks=len(shape.blocks),
            num_heads=max(1, *shape.groups) * self.spec.heads_per_group,
            num_groups=max(1, *shape.groups),
            ffn_size=max(1, *shape.neurons),
            block_windows=tuple(self.spec.block_windows[block] for block in shape.blocks),
            block_ropes=tuple(self.spec.block_ropes[block] for block in shape.blocks),
        )
        weights = {n: w.detach().clone() for n, w in self.weights.items() if "blocks." not in n}
        for place, block in enumerate(shape.blocks):
            views = self.block_weights(block, shape.groups[place], shape.neurons[place])
            for name, view in views.items():
                copy = view.detach().clone(memory_format=torch.contiguous_format)
                if f"blocks.{block}.{name}" in updates:
                    a_RI, b_OR = (part.detach() for part in updates[f"blocks.{block}.{name}"])
                    copy += b_OR[: len(view)] @ a_RI[:, : view.shape[1]]
                weights[f"blocks.{place}.{name}"] = copy
        places = tuple(range(len(shape.blocks)))
        return Supernet(spec, weights, SubnetShape(places, shape.groups, shape.neurons))

    def permute(self, orders: WidthOrders) -> None:
        """Put groups and neurons of every block in the given order, in place.

        The dense function stays the same; afterwards every width is a prefix. One block's weights
        are copied at a time. Adapters are made for weights in order: `UsageError` where there are
        some.
        """
        orders.check(self.spec)
        if self.adapters is not None:
            raise UsageError("Weights with adapters are in order already; permute them before.")
        for block, (groups, neurons) in enumerate(zip(orders.groups, orders.neurons, strict=True)):
            views = self.block_weights(block)
            with torch.no_grad():
                ordered = permuted_block(self.spec, views, groups, neurons)
            for name in [name for name in ordered if ordered[name] is not views[name]]:
                key = f"blocks.{block}.{name}"
                self.weights[key] = ordered[name].requires_grad_(self.weights[key].requires_grad)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        """Move or convert all weights, in place; whether they take gradients stays."""
        for name, weight in self.weights.items():
            moved = weight.detach().to(device=device, dtype=dtype)
            self.weights[name] = moved.requires_grad_(weight.requires_grad)
        if self.adapters is not None:
            self.adapters.to(device)

    def parameters(self) -> Iterator[torch.Tensor]:
        """All weights, tied embeddings once: what an optimizer takes."""
        return iter(self.weights.values())

    def to_checkpoint_tensors(self) -> dict[str, torch.Tensor]:
        """The weights under the names `transformers` gives them, detached and contiguous."""
        names = checkpoint_names(self.spec)
        return {names[name]: weight.detach().contiguous() for name, weight in self.weights.items()}

    def _checked(self, shape: SubnetShape | None) -> SubnetShape:
        """`shape`, or all that is stored; `UsageError` where it asks for more than that."""
        if shape is None or shape == self.shape:
            return self.shape
        shape.check_against(self.spec)
        stored = {b: (g, n) for b, g, n in zip(*msgspec.structs.astuple(self.shape), strict=True)}
        for block, groups, neurons in zip(*msgspec.structs.astuple(shape), strict=True):
            most_groups, most_neurons = stored[block]
            if groups > most_groups or neurons > most_neurons:
                raise UsageError(
                    f"Block {block} was asked for {groups} groups and {neurons} neurons; "
                    f"it has {most_groups} and {most_neurons}."
                )
        return shape


def _linear(weights: Mapping[str, torch.Tensor], matrix: str, x: torch.Tensor) -> torch.Tensor:
    result = functional.linear(x, weights[matrix], weights.get(f"{matrix}.bias"))
    if f"{matrix}.a" not in weights:
        return result
    reduced = functional.linear(x, weights[f"{matrix}.a"])
    return result + functional.linear(reduced, weights[f"{matrix}.b"])


def _widened(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _activate(activation: Activation, x: torch.Tensor) -> torch.Tensor:
    match activation:
        case "silu":
            return functional.silu(x)
        case "gelu":
            return functional.gelu(x)
        case "gelu_tanh":
            return functional.gelu(x, approximate="tanh")
