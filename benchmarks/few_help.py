"""HELP (arXiv 2106.08630), small: latencies foreseen by a network that adapts to a device.

A device is embedded by the latencies of ten reference steps. A network takes what a step is made
of and the embedding; weights are meta-learned over many devices so that two gradient steps on the
measured latencies, with learned step sizes (Meta-SGD), serve the rest. Left out of the published
method: sampling of the modulator, which scales weights by about a hundredth.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.func import functional_call

_Weights = dict[str, torch.Tensor]
_WIDTH, _INNER_STEPS, _BATCH = 64, 2, 8


class _Predictor(torch.nn.Module):
    """log seconds, relative to the mean of the measured ones, of steps on a device."""

    def __init__(self, features: int, references: int) -> None:
        super().__init__()
        self.step = torch.nn.Sequential(
            torch.nn.Linear(features, _WIDTH), torch.nn.ReLU(), torch.nn.Linear(_WIDTH, _WIDTH),
            torch.nn.ReLU(),
        )  # fmt: skip
        self.device = torch.nn.Sequential(torch.nn.Linear(references, _WIDTH), torch.nn.ReLU())
        self.last = torch.nn.Sequential(
            torch.nn.Linear(2 * _WIDTH, _WIDTH), torch.nn.ReLU(), torch.nn.Linear(_WIDTH, 1)
        )

    def forward(self, features_NF: torch.Tensor, device_R: torch.Tensor) -> torch.Tensor:
        """`[N]` from features `[N, F]` and one embedding `[R]`."""
        device_ND = self.device(device_R).expand(len(features_NF), -1)
        found: torch.Tensor = self.last(torch.cat([self.step(features_NF), device_ND], 1))
        return found.squeeze(1)


class Help:
    """The predictor, meta-learned on times of devices; the measured steps are always `known`."""

    def __init__(
        self,
        features_NF: NDArray[np.float64],
        times_DN: NDArray[np.float64],
        known: Sequence[int],
        episodes: int,
        seed: int,
    ) -> None:
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        spread = features_NF.std(0)
        scaled = (features_NF - features_NF.mean(0)) / np.where(spread > 0, spread, 1)
        self.features = torch.tensor(scaled, dtype=torch.float32)
        self.known = torch.tensor(list(known))
        self.net = _Predictor(features_NF.shape[1], len(known))
        self.rates = {
            name: torch.full_like(value, 0.01).requires_grad_()
            for name, value in self.net.named_parameters()
        }
        optimizer = torch.optim.Adam([*self.net.parameters(), *self.rates.values()], 2e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, episodes)
        draw = np.random.default_rng(seed)
        logs_DN = torch.tensor(np.log(times_DN), dtype=torch.float32)
        losses_of = torch.func.vmap(self._loss, in_dims=(None, None, 0))
        for _ in range(episodes):
            taken = torch.as_tensor(draw.integers(len(times_DN), size=_BATCH))
            weights: _Weights = {**dict(self.net.named_parameters())}
            loss = losses_of(weights, self.rates, logs_DN[taken]).mean()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()

    def foreseen(self, seconds_K: NDArray[np.float64]) -> NDArray[np.float64]:
        """Seconds of every step on a device whose `known` steps took `seconds`."""
        logs_K = torch.tensor(np.log(seconds_K), dtype=torch.float32)
        weights: _Weights = {**dict(self.net.named_parameters())}
        found = self._adapted(weights, self.rates, logs_K).detach() + logs_K.mean()
        seconds_N: NDArray[np.float64] = np.exp(found.numpy().astype(np.float64))
        return seconds_N

    def _loss(self, weights: _Weights, rates: _Weights, logs_N: torch.Tensor) -> torch.Tensor:
        known = logs_N[self.known]
        return (self._adapted(weights, rates, known) + known.mean() - logs_N).square().mean()

    def _adapted(self, weights: _Weights, rates: _Weights, logs_K: torch.Tensor) -> torch.Tensor:
        """Predictions of all steps after gradient steps on the known ones."""
        target = logs_K - logs_K.mean()

        def error(weights: _Weights) -> torch.Tensor:
            found: torch.Tensor = functional_call(
                self.net, weights, (self.features[self.known], target)
            )
            return (found - target).square().mean()

        for _ in range(_INNER_STEPS):
            slopes = torch.func.grad(error)(weights)
            weights = {name: weights[name] - rates[name] * slopes[name] for name in weights}
        adapted: torch.Tensor = functional_call(self.net, weights, (self.features, target))
        return adapted
