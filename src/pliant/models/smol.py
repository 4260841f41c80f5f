"""`ShapeAdapters`: the torch side of SMoL adapters, what is tuned and what a shape makes of it.

`pliant.adapters` is the definition of how experts are chosen and merged; without noise it is used
as it stands, so that a tuned model and its artifact have the same gates.

Shape suffixes: E experts, R ranks, O rows and I columns of a matrix.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch.nn import functional

from pliant.adapters import (
    AdapterSpec,
    factor_shapes,
    gates,
    router_shapes,
    shape_code,
    update_rank,
)
from pliant.errors import CheckpointError
from pliant.shape import SubnetShape
from pliant.spec import BLOCK_MATRICES, ModelSpec

#: Only in training: what the deviation of the noise is made of, from the code of a shape.
NOISE = ("router.noise", "router.noise.bias")
#: softplus(-2) is 0.13: noise that tries a neighbour now and then. With the published 0.7, as large
#: as the scores themselves, experts are drawn at random for as long as it has not been unlearnt.
_NOISE_BIAS = -2.0


class ShapeAdapters:
    """Adapters of a model: their numbers `adapters` and their `tensors` by name.

    Names are those of `factor_shapes` and `router_shapes`, and `NOISE` while they are tuned.
    """

    def __init__(
        self, spec: ModelSpec, adapters: AdapterSpec, tensors: Mapping[str, torch.Tensor]
    ) -> None:
        """Over these tensors, not copied; `CheckpointError` where one is missing or misshapen."""
        self.spec, self.adapters = spec, adapters
        expected = {**router_shapes(spec, adapters), **factor_shapes(spec, adapters)}
        for name, shape in expected.items():
            found = tuple(tensors[name].shape) if name in tensors else "missing"
            if found != shape:
                raise CheckpointError(f"The adapter tensor {name} is {found}; it must be {shape}.")
        unknown = sorted(set(tensors) - set(expected) - set(NOISE))
        if unknown:
            raise CheckpointError(f"{unknown[0]} is no tensor of these adapters.")
        self.tensors = dict(tensors)

    @classmethod
    def initialized(cls, spec: ModelSpec, adapters: AdapterSpec, seed: int) -> ShapeAdapters:
        """Fresh fp32 adapters that change nothing: A as in LoRA (arXiv 2106.09685), B zero."""
        generator = torch.Generator().manual_seed(seed)
        tensors: dict[str, torch.Tensor] = {}
        for name, shape in router_shapes(spec, adapters).items():
            deviation = shape[-1] ** -0.5 if len(shape) == 2 else 0.0
            tensors[name] = torch.randn(shape, generator=generator) * deviation
        if adapters.experts > 1:
            code = 3 * spec.num_blocks
            tensors["router.noise"] = torch.zeros(adapters.experts, code)
            tensors["router.noise.bias"] = torch.full((adapters.experts,), _NOISE_BIAS)
        for name, factor_shape in factor_shapes(spec, adapters).items():
            tensor = torch.zeros(factor_shape)
            if name.endswith(".a"):
                bound = factor_shape[-1] ** -0.5
                tensor.uniform_(-bound, bound, generator=generator)
            tensors[name] = tensor
        return cls(spec, adapters, tensors)

    def stored_tensors(self) -> dict[str, torch.Tensor]:
        """All tensors but those of the noise, detached: what a tuned model keeps."""
        return {n: t.detach().contiguous() for n, t in self.tensors.items() if n not in NOISE}

    def rank_of(self, shape: SubnetShape) -> int:
        """Rank of the update of a shape; 0 where it has none."""
        return update_rank(self.spec, self.adapters, shape)

    def gates(
        self, shape: SubnetShape, noise_E: torch.Tensor | None = None
    ) -> dict[int, torch.Tensor]:
        """Gates of the experts that a shape uses; scalars through which gradients flow.

        None for the full shape of anchored adapters. With standard normal `noise_E` scores are
        moved by it times a learnt deviation before the best are taken (training); without it they
        are the constants of `pliant.adapters.gates`.
        """
        router = {name: self.tensors[name] for name in router_shapes(self.spec, self.adapters)}
        code = shape_code(self.spec, shape)
        first = next(iter(self.tensors.values()))
        if noise_E is None or not router or not self.rank_of(shape):
            arrays = {name: tensor.detach().cpu().numpy() for name, tensor in router.items()}
            constant = gates(self.adapters, arrays, code)
            return {expert: first.new_tensor(gate) for expert, gate in constant.items()}
        code_C = torch.from_numpy(code).to(first)
        hidden = functional.linear(code_C, router["router.hidden"], router["router.hidden.bias"])
        score_E = functional.linear(
            hidden.relu(), router["router.output"], router["router.output.bias"]
        )
        noise, bias = (self.tensors[name] for name in NOISE)
        deviation_E = functional.softplus(functional.linear(code_C, noise, bias))
        score_E = score_E + noise_E.to(first) * deviation_E
        top_K, expert_K = score_E.topk(self.adapters.top_k)
        gate_K = top_K.softmax(-1)
        return {expert: gate_K[place] for place, expert in enumerate(expert_K.tolist())}

    def low_rank(
        self, shape: SubnetShape, noise_E: torch.Tensor | None = None
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """`(a_RI, b_OR)` of every matrix of a shape, cut to its widths: its update is `b @ a`.

        Empty for the full shape of anchored adapters.
        """
        chosen = self.gates(shape, noise_E)
        result: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        if not chosen:
            return result
        widths = zip(shape.blocks, shape.groups, shape.neurons, strict=True)
        for block, groups, neurons in widths:
            for matrix in BLOCK_MATRICES:
                rows, columns = self.spec.matrix_shape(matrix, groups, neurons)
                name = f"blocks.{block}.{matrix}"
                a_ERI, b_EOR = self.tensors[f"{name}.a"], self.tensors[f"{name}.b"]
                a_RI = sum(gate * a_ERI[e, :, :columns] for e, gate in chosen.items())
                b_OR = sum(gate * b_EOR[e, :rows] for e, gate in chosen.items())
                assert isinstance(a_RI, torch.Tensor) and isinstance(b_OR, torch.Tensor)
                result[name] = a_RI, self.adapters.scale * b_OR
        return result

    def to(self, device: torch.device | str | None = None) -> None:
        """Move all tensors, in place."""
        self.tensors = {name: tensor.to(device) for name, tensor in self.tensors.items()}


def gate_noise(adapters: AdapterSpec, seed: int, step: int, place: int) -> torch.Tensor:
    """The noise of the shape number `place` of a step, `[E]`: a function of seed and step alone."""
    drawn = np.random.default_rng([seed, step, place, 1]).standard_normal(adapters.experts)
    return torch.from_numpy(drawn.astype(np.float32))
