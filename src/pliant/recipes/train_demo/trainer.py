"""`Trainer`: one process of a training run, from fresh or saved weights to the last step.

Shape suffixes: B windows, T tokens.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from typing import Any

import torch
from torch import distributed
from torch.nn import functional

from pliant import tune
from pliant.measurement import Progress, silent
from pliant.models import Supernet
from pliant.recipes.train_demo.config import DemoConfig
from pliant.recipes.train_demo.corpus import DemoCorpus
from pliant.tune import FlatTensors, MuonAdam, StopRequest, load_state, save_state

#: One JSON object per line, appended by the first process.
LOG_FILE = "training_log.jsonl"

_SUPERNET_DEVIATION = 0.02


class Trainer:
    """Model, optimizer and place in the run of process `rank` of `config.processes`.

    All processes hold equal weights: each computes the gradient of its windows, the gradients are
    added, and every process takes the same step. Only rank 0 writes files.
    """

    def __init__(self, config: DemoConfig, corpus: DemoCorpus, rank: int = 0) -> None:
        self.config, self.corpus, self.rank = config, corpus, rank
        self.model = fresh_model(config)
        self.optimizer = MuonAdam(self.model.weights, rank=rank, processes=config.processes)
        self._gradients = FlatTensors(self.model.weights)
        for name, weight in self.model.weights.items():
            weight.grad = self._gradients.views[name]
        self.progress = load_state(config.state, config.fingerprint(), self._tensors())
        self._logged: list[float] = []

    def run(self, stop: StopRequest, report: Progress = silent) -> None:
        """Take all steps that are left, saving and logging on the way; return early on `stop`."""
        config, started = self.config, time.monotonic() - self.progress.seconds
        saved = measured = time.monotonic()
        while self.progress.step < config.num_steps:
            loss, others_stop, norm = self._step(stop.requested)
            self.progress = replace(self.progress, seconds=time.monotonic() - started)
            self._logged.append(loss)
            report("training", self.progress.step, config.num_steps)
            last = others_stop or self.progress.step == config.num_steps
            if self.rank == 0 and (last or self.progress.step % config.log_steps == 0):
                due = last or time.monotonic() - measured > config.heldout_seconds
                measured = time.monotonic() if due else measured
                self._log(norm, measure=due)
            if self.rank == 0 and (last or time.monotonic() - saved > config.save_seconds):
                save_state(config.state, self.progress, self._tensors())
                saved = time.monotonic()
            if last:
                return

    def heldout_bits_per_byte(self) -> float:
        """Loss on the fixed held-out windows, in bits per byte of the held-out text."""
        length = self.config.window(self.config.num_steps) + 1
        windows_BT = torch.from_numpy(
            self.corpus.heldout_windows(length, self.config.heldout_windows)
        )
        with torch.no_grad():
            parts = windows_BT.split(max(1, self.config.micro_tokens // length))
            nats = sum(window_loss(self.model, part).item() * len(part) for part in parts)
        bytes_per_token = self.corpus.heldout_bytes / self.corpus.heldout.size
        return nats / len(windows_BT) / math.log(2) / bytes_per_token

    def _step(self, stop_requested: bool) -> tuple[float, bool, float]:
        """One optimizer step; mean loss, whether any process wants to stop, gradient norm."""
        loss = self._accumulate_gradients()
        shared = torch.tensor([loss / self.config.processes, float(stop_requested)])
        self._add(self._gradients.flat)
        self._add(shared)
        norm = self._gradients.flat.norm().item()
        if norm > self.config.clip_norm:
            self._gradients.flat.mul_(self.config.clip_norm / norm)
        step, rate = self.progress.step, rate_factor(self.progress.step, self.config)
        self.optimizer.step(
            step,
            rate * self.config.matrix_rate,
            rate * self.config.vector_rate,
            self.config.weight_decay,
            self._add if self.config.processes > 1 else None,
        )
        tokens = self.progress.tokens + self.config.batch_tokens
        self.progress = replace(self.progress, step=step + 1, tokens=tokens)
        return shared[0].item(), shared[1].item() > 0, norm

    def _accumulate_gradients(self) -> float:
        """Leave the mean gradient of this process's windows, over all processes, in `.grad`."""
        config, step = self.config, self.progress.step
        length = config.window(step)
        count = config.batch_tokens // length
        windows_BT = self.corpus.mixture.windows(step, count, length + 1)
        mine_BT = torch.from_numpy(windows_BT[self.rank :: config.processes])
        parts = mine_BT.split(max(1, config.micro_tokens // length))
        self._gradients.flat.zero_()
        total = 0.0
        for part_BT in parts:
            loss = window_loss(self.model, part_BT)
            (loss * (len(part_BT) / len(mine_BT) / config.processes)).backward()
            total += loss.item() * len(part_BT) / len(mine_BT)
        return total

    def _add(self, flat: torch.Tensor) -> None:
        if self.config.processes > 1:
            distributed.all_reduce(flat)

    def _tensors(self) -> dict[str, torch.Tensor]:
        """All that a resumed run needs, by its name in the state file; live tensors."""
        tensors = {f"weight.{name}": tensor for name, tensor in self.model.weights.items()}
        tensors |= {f"momentum.{name}": t for name, t in self.optimizer.momentum.items()}
        return tensors | {f"variance.{name}": t for name, t in self.optimizer.variance.items()}

    def _log(self, gradient_norm: float, *, measure: bool) -> None:
        record: dict[str, Any] = {
            "step": self.progress.step,
            "tokens": self.progress.tokens,
            "train_nats_per_token": round(sum(self._logged) / len(self._logged), 4),
            "rate_factor": round(rate_factor(self.progress.step - 1, self.config), 4),
            "gradient_norm": round(gradient_norm, 3),
            "seconds": round(self.progress.seconds, 1),
        }
        if measure:
            record["heldout_bits_per_byte"] = round(self.heldout_bits_per_byte(), 4)
        self._logged.clear()
        with (self.config.state / LOG_FILE).open("a") as file:
            file.write(json.dumps(record) + "\n")


def fresh_model(config: DemoConfig) -> Supernet:
    """Untrained float32 weights of `config.shape`, ready for gradients."""
    model = Supernet.initialized(config.shape.spec(), config.seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                # A hidden size of 128 wants larger weights than the 768 that 0.02 was found for.
                weight.mul_(config.initial_deviation / _SUPERNET_DEVIATION)
    return model


def rate_factor(step: int, config: DemoConfig) -> float:
    """Share of the peak rates at a step: linear warm-up times a cosine down to `final_rate`."""
    return tune.rate_factor(step, config.num_steps, config.warmup_steps, config.final_rate)


def window_loss(model: Supernet, windows_BT: torch.Tensor) -> torch.Tensor:
    """Mean nats of predicting every token of the windows but their first."""
    logits_BTV = model(windows_BT[:, :-1])
    return functional.cross_entropy(logits_BTV.flatten(0, 1), windows_BT[:, 1:].flatten())
