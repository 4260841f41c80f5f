"""Muon for matrices, Adam for the embedding and norms, with the work shared between processes.

Muon: Jordan et al. 2024 (kellerjordan.github.io/posts/muon): the momentum of a matrix is replaced
by its nearest semi-orthogonal matrix, found by a quintic Newton-Schulz iteration, so that all
directions learn at the same rate. Adam: arXiv 1412.6980. Weight decay is decoupled (1711.05101).

Shape suffixes: S matrices of one shape, O rows, I columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

#: Coefficients of Jordan et al.: steepest at zero; singular values end up between 0.7 and 1.2.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_MOMENTUM = 0.95
_ADAM_DECAYS = (0.9, 0.99)
_ADAM_EPSILON = 1e-10

#: Adds a flat float32 tensor over all processes, in place.
SumOverProcesses = Callable[[torch.Tensor], None]


class FlatTensors:
    """One flat zeroed float32 buffer (`flat`) and its parts by name, in given shapes (`views`)."""

    def __init__(self, like: Mapping[str, torch.Tensor]) -> None:
        sizes = [tensor.numel() for tensor in like.values()]
        device = next(iter(like.values())).device if like else None
        self.flat = torch.zeros(sum(sizes), device=device)
        self.views = {
            name: piece.view_as(tensor)
            for (name, tensor), piece in zip(like.items(), self.flat.split(sizes), strict=True)
        }


def orthogonalized(matrices_SOI: torch.Tensor) -> torch.Tensor:
    """About the nearest semi-orthogonal matrix to each of a stack, same shape and dtype."""
    norms = matrices_SOI.norm(dim=(-2, -1), keepdim=True) + 1e-7
    tall = matrices_SOI.shape[-2] > matrices_SOI.shape[-1]
    x: torch.Tensor = (matrices_SOI.mT if tall else matrices_SOI) / norms
    linear, cubic, quintic = _QUINTIC
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = linear * x + (cubic * gram + quintic * gram @ gram) @ x
    return x.mT if tall else x


class MuonAdam:
    """Optimizer state of named parameters, and the step that uses it.

    `momentum` exists for all parameters, `variance` for those that Adam trains: one-dimensional
    ones and the names in `vectors`. With several processes each orthogonalizes its share of the
    matrices and the updates are added; state stays equal everywhere.
    """

    def __init__(
        self,
        parameters: Mapping[str, torch.Tensor],
        vectors: frozenset[str] = frozenset({"embedding"}),
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self._parameters = dict(parameters)
        self._matrices = [n for n, p in parameters.items() if p.ndim == 2 and n not in vectors]
        self._vectors = [n for n in parameters if n not in set(self._matrices)]
        self.momentum = {n: torch.zeros_like(p) for n, p in parameters.items()}
        self.variance = {n: torch.zeros_like(parameters[n]) for n in self._vectors}
        self._updates = FlatTensors({n: parameters[n] for n in self._matrices})
        self._share = _dealt(self._stacks(), processes)[rank]

    @torch.no_grad()
    def step(
        self,
        number: int,
        matrix_rate: float,
        vector_rate: float,
        weight_decay: float,
        add: SumOverProcesses | None = None,
    ) -> None:
        """Move all parameters by their `.grad`; `number` counts steps from 0."""
        for name, parameter in self._parameters.items():
            decay = _MOMENTUM if name in self._updates.views else _ADAM_DECAYS[0]
            self.momentum[name].lerp_(_gradient(parameter), 1 - decay)
        self._orthogonalize(add)
        for name in self._matrices:
            parameter = self._parameters[name]
            parameter.mul_(1 - matrix_rate * weight_decay)
            parameter.sub_(self._updates.views[name], alpha=matrix_rate)
        for name in self._vectors:
            # Decay would pull norm weights to zero, where they have no reason to be.
            decay = weight_decay if self._parameters[name].ndim == 2 else 0.0
            self._adam(name, number, vector_rate, decay)

    def _orthogonalize(self, add: SumOverProcesses | None) -> None:
        if add is not None:
            self._updates.flat.zero_()
        for names in self._share:
            # Nesterov: look one step of momentum ahead.
            ahead_SOI = torch.stack(
                [_gradient(self._parameters[n]).lerp(self.momentum[n], _MOMENTUM) for n in names]
            )
            rows, columns = ahead_SOI.shape[-2:]
            # Keeps the size of outputs equal for wide and tall matrices.
            scale = max(1.0, rows / columns) ** 0.5
            for name, update_OI in zip(names, orthogonalized(ahead_SOI), strict=True):
                torch.mul(update_OI, scale, out=self._updates.views[name])
        if add is not None and self._matrices:
            add(self._updates.flat)

    def _adam(self, name: str, number: int, rate: float, weight_decay: float) -> None:
        parameter, (first, second) = self._parameters[name], _ADAM_DECAYS
        variance = self.variance[name].lerp_(_gradient(parameter).square(), 1 - second)
        mean = self.momentum[name] / (1 - first ** (number + 1))
        deviation = (variance / (1 - second ** (number + 1))).sqrt_().add_(_ADAM_EPSILON)
        parameter.mul_(1 - rate * weight_decay).addcdiv_(mean, deviation, value=-rate)

    def _stacks(self) -> list[list[str]]:
        """Matrices of the same shape, which one batched product serves."""
        stacks: dict[tuple[int, ...], list[str]] = {}
        for name in self._matrices:
            stacks.setdefault(tuple(self._parameters[name].shape), []).append(name)
        return list(stacks.values())


def _dealt(stacks: list[list[str]], processes: int) -> list[list[list[str]]]:
    """Each process's part of the stacks: every stack split as evenly as its size allows."""
    return [
        [part for stack in stacks if (part := stack[rank::processes])] for rank in range(processes)
    ]


def _gradient(parameter: torch.Tensor) -> torch.Tensor:
    assert parameter.grad is not None, "gradients are allocated before the first step"
    return parameter.grad
