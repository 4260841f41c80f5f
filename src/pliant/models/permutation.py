"""Baking a width order into the weights of a block: producers' rows, consumers' columns.

Shape suffixes: G KV groups, O rows, I columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from pliant.spec import ModelSpec

#: Axis along which units of each tensor of a block lie, and rows per unit as a spec attribute.
_GROUP_AXES = {
    "q": (0, "group_size"),
    "q.bias": (0, "group_size"),
    "k": (0, "head_dim"),
    "k.bias": (0, "head_dim"),
    "v": (0, "head_dim"),
    "v.bias": (0, "head_dim"),
    "o": (1, "group_size"),
}
_NEURON_AXES = {"gate": 0, "gate.bias": 0, "up": 0, "up.bias": 0, "down": 1}


def permuted_block(
    spec: ModelSpec,
    tensors: Mapping[str, torch.Tensor],
    groups: Sequence[int],
    neurons: Sequence[int],
) -> dict[str, torch.Tensor]:
    """A block whose n-th KV group and n-th neuron are units `groups[n]` and `neurons[n]`.

    `tensors` are those of `spec.block_tensors`, by name within the block; those that have no axis
    of groups or neurons (norms, biases of `o` and `down`) are passed on. The block computes the
    same function, because every producer's rows move with its consumer's columns.
    """
    result = dict(tensors)
    for name, tensor in tensors.items():
        if name in _GROUP_AXES:
            axis, unit = _GROUP_AXES[name]
            index_by_group = torch.arange(tensor.shape[axis]).view(-1, getattr(spec, unit))
            index = index_by_group[torch.tensor(groups)].flatten().to(tensor.device)
            result[name] = tensor.index_select(axis, index)
        elif name in _NEURON_AXES:
            index = torch.tensor(neurons, device=tensor.device)
            result[name] = tensor.index_select(_NEURON_AXES[name], index)
    return result
