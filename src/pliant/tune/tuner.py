"""`ShapeTuner`: one process of a one-for-all tuning, from the first step or a saved one.

Shape suffixes: B windows, T tokens, N predicted tokens, D hidden size.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from pliant.data import Mixture
from pliant.errors import UsageError
from pliant.measurement import Progress, silent
from pliant.models import Supernet, gate_noise
from pliant.shape import SubnetShape
from pliant.tune.distillation import ShapeLoss, Teacher, balance_factor, shape_loss
from pliant.tune.interruption import StopRequest
from pliant.tune.optimizer import FlatTensors, MuonAdam
from pliant.tune.options import TuneOptions
from pliant.tune.sandwich import NamedShape, Sampler
from pliant.tune.schedule import rate_factor
from pliant.tune.state import TrainingProgress, load_state, save_state
from pliant.tune.workers import Workers

#: One JSON object per step, appended by the first process: the unscaled loss of every shape.
LOG_FILE = "tuning_log.jsonl"


class ShapeTuner:
    """A supernet whose weights are tuned in place, with optimizer and place in the run.

    Where the model has adapters, they are tuned and nothing else.

    `sampler` names the shapes of each step. The first learns from the text and teaches the others,
    which learn from its predictions of the same moment (in-place distillation, arXiv 1903.05134);
    with a frozen teacher, `teacher` or by the options this model as it is now, all of them learn
    from that model's full shape. Shapes that adapters spare are not run. Windows and shapes are
    functions of the step alone, so a run resumed from `folder` ends in the bits of one that was
    never stopped. `fingerprint` names all inputs; state of others is refused.
    """

    def __init__(
        self,
        model: Supernet,
        sampler: Sampler,
        mixture: Mixture,
        options: TuneOptions,
        *,
        folder: Path | None = None,
        fingerprint: str = "",
        workers: Workers | None = None,
        teacher: Supernet | None = None,
    ) -> None:
        self.model, self.options, self.workers = model, options, workers or Workers()
        if options.windows_per_step % self.workers.count:
            raise UsageError(
                f"{options.windows_per_step} windows per step do not divide among "
                f"{self.workers.count} processes; choose another number of batch tokens."
            )
        self._sampler, self._mixture = sampler, mixture
        # Before anything is tuned or read back: a run that goes on has the same teacher.
        self._teacher = teacher or (_as_it_is(model) if options.teacher == "frozen" else None)
        self._folder = folder
        if (model.adapters and model.adapters.adapters) != options.adapters:
            raise UsageError(
                f"The model has {model.adapters and model.adapters.adapters}, the options ask for "
                f"{options.adapters or 'full tuning'}; give the model the adapters that are tuned."
            )
        # Without adapters the weights themselves; else they get no gradient.
        self._tuned = model.adapters.tensors if model.adapters else model.weights
        for name, weight in model.weights.items():
            model.weights[name] = weight.detach()
        for name, tensor in self._tuned.items():
            self._tuned[name] = tensor.detach().requires_grad_()
        by_adam = set(self._tuned) if model.adapters else {"embedding", "head"}
        self._optimizer = MuonAdam(
            self._tuned, frozenset(by_adam), self.workers.rank, self.workers.count
        )
        self._gradients = FlatTensors(self._tuned)
        for name, tensor in self._tuned.items():
            tensor.grad = self._gradients.views[name]
        self.progress = TrainingProgress(0, 0, 0.0, fingerprint)
        if folder is not None:
            self.progress = load_state(folder, fingerprint, self._tensors())
            if self.workers.is_first:
                _shorten_log(folder / LOG_FILE, self.progress.step)

    @property
    def is_done(self) -> bool:
        """Whether all steps were taken."""
        return self.progress.step >= self.options.steps

    def run(
        self, stop: StopRequest | None = None, report: Progress = silent, save_seconds: float = 120
    ) -> None:
        """Take all steps that are left, saving now and then; on `stop` save and return early."""
        stop = stop or StopRequest()
        started = time.monotonic() - self.progress.seconds
        saved = time.monotonic()
        while not self.is_done:
            stopped = self._step(stop.requested)
            self.progress = replace(self.progress, seconds=time.monotonic() - started)
            report("tuning", self.progress.step, self.options.steps)
            last = stopped or self.is_done
            if last or time.monotonic() - saved > save_seconds:
                self._save()
                saved = time.monotonic()
            if stopped:
                return

    def _step(self, stop_requested: bool) -> bool:
        """One optimizer step on all shapes of the sandwich; whether any process wants to stop."""
        options, step = self.options, self.progress.step
        shapes = self._sampler(step)
        losses_S2 = self._accumulate_gradients(shapes)
        summary = torch.cat([losses_S2.flatten(), torch.tensor([float(stop_requested)])])
        summary = summary.to(self._gradients.flat.device, torch.float32)
        self.workers.add(self._gradients.flat)
        self.workers.add(summary)
        norm = self._gradients.flat.norm().item()
        if not math.isfinite(norm):
            raise UsageError(
                f"The gradient of step {step + 1} is not finite: the tuning diverged. Start again "
                "with a lower rate, or in float32."
            )
        if norm > options.clip_norm:
            self._gradients.flat.mul_(options.clip_norm / norm)
        rate = rate_factor(
            step, options.steps, options.warmup_steps, options.final_rate, options.schedule
        )
        self._optimizer.step(
            step, rate * options.matrix_rate, rate * options.vector_rate, options.weight_decay,
            self.workers.add if self.workers.count > 1 else None,
        )  # fmt: skip
        tokens = self.progress.tokens + options.batch_tokens
        self.progress = replace(self.progress, step=step + 1, tokens=tokens)
        if self._folder is not None and self.workers.is_first:
            self._log(shapes, summary[:-1].view(-1, 2).tolist(), norm, rate)
        return summary[-1].item() > 0

    def _accumulate_gradients(self, shapes: Sequence[NamedShape]) -> torch.Tensor:
        """Leave the mean gradient over shapes and this process's windows in `.grad`.

        Returns objective and text loss of each shape, `[shapes, 2]`; both gradient and losses are
        divided by the number of processes, so that sums over them are means.
        """
        options, workers = self.options, self.workers
        length = options.window_tokens + 1
        windows_BT = self._mixture.windows(self.progress.step, options.windows_per_step, length)
        mine_BT = torch.from_numpy(windows_BT[workers.rank :: workers.count])
        mine_BT = mine_BT.to(self.model.weights["embedding"].device)
        self._gradients.flat.zero_()
        losses_S2 = torch.zeros(len(shapes), 2)
        for part_BT in mine_BT.split(options.windows_at_once):
            part = len(part_BT) / len(mine_BT) / workers.count
            losses_S2 += part * self._learn(shapes, part_BT, part / len(shapes))
        return losses_S2

    def _learn(
        self, shapes: Sequence[NamedShape], windows_BT: torch.Tensor, weight: float
    ) -> torch.Tensor:
        """Add `weight` x the gradient of each shape on some windows; their losses `[shapes, 2]`."""
        options = self.options
        frozen = self._frozen_words(windows_BT)
        teacher = frozen and frozen.teacher
        losses: list[tuple[float, float]] = []
        for place, named in enumerate(shapes):
            if self._is_spared(named.shape) and frozen and teacher:
                losses.append((teacher.entropy(), frozen.text_loss.item()))
                continue
            teaches = place == 0 and len(shapes) > 1 and self._teacher is None and options.distill
            found = self._loss(windows_BT, place, named.shape, teacher, bool(teaches))
            losses.append((found.objective.item(), found.text_loss.item()))
            factor = 1.0
            if options.balance and place:
                factor = balance_factor(losses[0][0], losses[-1][0], options.balance_limit)
            (found.objective * (factor * weight)).backward()
            teacher = found.teacher if teaches else teacher
        return torch.tensor(losses)

    def _loss(
        self,
        windows_BT: torch.Tensor,
        place: int,
        shape: SubnetShape,
        teacher: Teacher | None,
        teaches: bool,
    ) -> ShapeLoss:
        options, noise_E = self.options, None
        if options.adapters is not None:
            noise_E = gate_noise(options.adapters, options.seed, self.progress.step, place)
        with self._arithmetic(windows_BT.device):
            model = self.model.at(shape, noise_E)
            hidden_BTD = hidden_states(model, windows_BT[:, :-1], shape, options.checkpointing)
            return shape_loss(
                model, hidden_BTD.flatten(0, 1), windows_BT[:, 1:].flatten(), teacher,
                options.distill, options.teacher_tokens if teaches else 0,
            )  # fmt: skip

    @torch.no_grad()
    def _frozen_words(self, windows_BT: torch.Tensor) -> ShapeLoss | None:
        """What the frozen teacher, where there is one, says of some windows, and its own loss."""
        if self._teacher is None or not self.options.distill:
            return None
        with self._arithmetic(windows_BT.device):
            hidden_BTD = hidden_states(self._teacher, windows_BT[:, :-1], self._teacher.shape)
            return shape_loss(
                self._teacher, hidden_BTD.flatten(0, 1), windows_BT[:, 1:].flatten(),
                teaches=self.options.teacher_tokens,
            )  # fmt: skip

    def _is_spared(self, shape: SubnetShape) -> bool:
        """Whether a shape stays as it was: nothing that is tuned is part of it."""
        return self.model.adapters is not None and not self.model.adapters.rank_of(shape)

    def _arithmetic(self, device: torch.device) -> torch.autocast:
        return torch.autocast(
            device.type, torch.bfloat16, enabled=self.options.precision == "bfloat16"
        )

    def _tensors(self) -> dict[str, torch.Tensor]:
        """All that a resumed run needs, by its name in the state file; live tensors."""
        tensors = {f"weight.{name}": tensor for name, tensor in self._tuned.items()}
        tensors |= {f"momentum.{name}": t for name, t in self._optimizer.momentum.items()}
        return tensors | {f"variance.{name}": t for name, t in self._optimizer.variance.items()}

    def _save(self) -> None:
        if self._folder is not None and self.workers.is_first:
            save_state(self._folder, self.progress, self._tensors())

    def _log(
        self,
        shapes: Sequence[NamedShape],
        losses: Sequence[Sequence[float]],
        norm: float,
        rate: float,
    ) -> None:
        record: dict[str, Any] = {
            "step": self.progress.step,
            "tokens": self.progress.tokens,
            "rate_factor": round(rate, 4),
            "gradient_norm": round(norm, 4),
            "seconds": round(self.progress.seconds, 1),
            "shapes": [
                {
                    "shape": named.name,
                    "objective": round(pair[0], 5),
                    "text_nats": round(pair[1], 5),
                    **self._experts_of(named),
                }
                for named, pair in zip(shapes, losses, strict=True)
            ],
        }
        assert self._folder is not None
        with (self._folder / LOG_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def _experts_of(self, named: NamedShape) -> dict[str, dict[str, float]]:
        """The experts a shape uses and their gates, so that a log shows one that collapses."""
        adapters = self.model.adapters
        if adapters is None or adapters.adapters.experts == 1:
            return {}
        chosen = adapters.gates(named.shape)
        return {"experts": {str(expert): round(gate.item(), 3) for expert, gate in chosen.items()}}


def _as_it_is(model: Supernet) -> Supernet:
    """A model without adapters that what is tuned leaves as it is: only full tuning copies it."""
    if model.adapters is not None:
        return model.without_adapters()
    weights = {name: weight.detach().clone() for name, weight in model.weights.items()}
    return Supernet(model.spec, weights, model.shape)


def hidden_states(
    model: Supernet, tokens_BT: torch.Tensor, shape: SubnetShape, checkpointing: bool = False
) -> torch.Tensor:
    """What leaves the last block of a shape, `[B, T, D]`.

    With `checkpointing` the backward pass runs each block again instead of remembering it.
    """
    hidden_BTD = model.embed(tokens_BT)
    for block, groups, neurons in zip(shape.blocks, shape.groups, shape.neurons, strict=True):
        if checkpointing:
            hidden_BTD = checkpoint(
                model.block, block, hidden_BTD, groups, neurons, use_reentrant=False
            )
        else:
            hidden_BTD = model.block(block, hidden_BTD, groups, neurons)
    return hidden_BTD


def _shorten_log(path: Path, steps: int) -> None:
    """Forget the lines of steps that a resumed run will take again."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:steps]), encoding="utf-8")
