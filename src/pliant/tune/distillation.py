"""What a shape learns: the text, the words of a teacher, or a mixture of both.

Predictions and targets are shifted once, by the caller, so that the text and the teacher are
compared at the same positions.

Shape suffixes: N predicted tokens, D hidden size, V vocabulary, K tokens kept of the teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from pliant.models import Supernet

#: Most bytes of logits in one piece; beyond it they are made anew for the backward pass.
LOGIT_BYTES = 64 * 2**20


@dataclass(frozen=True, eq=False)
class Teacher:
    """A teacher's distribution: its likeliest tokens, and all others as one event.

    `token_NK` are ids, `log_NK` their log-probabilities, `log_rest_N` that of the rest together;
    None where nothing is left out. No gradient flows into it.
    """

    token_NK: torch.Tensor
    log_NK: torch.Tensor
    log_rest_N: torch.Tensor | None

    @classmethod
    def of(cls, logits_NV: torch.Tensor, tokens: int) -> Teacher:
        """The distribution of these logits, `tokens` entries of each row kept."""
        logits_NV = logits_NV.detach()
        if tokens >= logits_NV.shape[-1]:
            everything = torch.arange(logits_NV.shape[-1], device=logits_NV.device)
            return cls(everything.expand_as(logits_NV), logits_NV.log_softmax(-1), None)
        total_N = logits_NV.logsumexp(-1)
        top_NK, token_NK = logits_NV.topk(tokens, sorted=False)
        return cls(token_NK, top_NK - total_N[:, None], _log_rest(logits_NV, token_NK) - total_N)

    def entropy(self) -> float:
        """Mean over rows of - Σ p log p of these events, nats: the least any student can reach."""
        total = -(self.log_NK.exp() * self.log_NK).sum()
        if self.log_rest_N is not None:
            total = total - (self.log_rest_N.exp() * self.log_rest_N).nan_to_num().sum()
        return (total / len(self.token_NK)).item()

    def split(self, rows: int) -> list[Teacher]:
        """The same for runs of `rows` predictions."""
        count = -(-len(self.token_NK) // rows)
        rests: Sequence[torch.Tensor | None] = (
            [None] * count if self.log_rest_N is None else self.log_rest_N.split(rows)
        )
        parts = zip(self.token_NK.split(rows), self.log_NK.split(rows), rests, strict=True)
        return [Teacher(*part) for part in parts]

    @staticmethod
    def joined(parts: Sequence[Teacher]) -> Teacher:
        """The teacher whose `split` gives `parts`."""
        rests = [part.log_rest_N for part in parts if part.log_rest_N is not None]
        return Teacher(
            torch.cat([part.token_NK for part in parts]),
            torch.cat([part.log_NK for part in parts]),
            torch.cat(rests) if rests else None,
        )

    def cross_entropy(self, logits_NV: torch.Tensor) -> torch.Tensor:
        """Sum over rows of - Σ p log q, q the student's distribution over the same events, nats.

        At least the teacher's entropy; equal to the full cross-entropy where nothing is left out.
        """
        total_N = logits_NV.logsumexp(-1)
        log_NK = logits_NV.gather(-1, self.token_NK) - total_N[:, None]
        result = -(self.log_NK.exp() * log_NK).sum()
        if self.log_rest_N is not None:
            log_rest_N = _log_rest(logits_NV, self.token_NK) - total_N
            result = result - (self.log_rest_N.exp() * log_rest_N).sum()
        return result


class ShapeLoss(NamedTuple):
    """Mean over predictions: the `objective` that is learnt, and the loss on the text, both nats.

    `teacher` is what the prediction would teach others, where that was asked for.
    """

    objective: torch.Tensor
    text_loss: torch.Tensor
    teacher: Teacher | None


def shape_loss(
    model: Supernet,
    hidden_ND: torch.Tensor,
    target_N: torch.Tensor,
    teacher: Teacher | None = None,
    distill: float = 1.0,
    teaches: int = 0,
    logit_bytes: int = LOGIT_BYTES,
) -> ShapeLoss:
    """Loss of predicting `target_N` from last hidden states, `distill` of it a teacher's words.

    Without a teacher all of it is the text. `teaches` entries per row are kept of the predictions
    themselves as a teacher of others (0: none). Logits are made for as many rows as `logit_bytes`
    allow; of more than that only the losses are kept, so a vocabulary of 128k fits.
    """
    rows = max(1, logit_bytes // (4 * model.spec.vocab_size))
    hiddens, targets = hidden_ND.split(rows), target_N.split(rows)
    teachers: Sequence[Teacher | None] = (
        [None] * len(hiddens) if teacher is None else teacher.split(rows)
    )
    taught: dict[int, Teacher] = {}

    def part(place: int, hidden_ND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        target_N, words = targets[place], teachers[place]
        logits_NV = model.logits(hidden_ND[None])[0]
        if teaches and place not in taught:  # as it is when run again for the backward pass
            taught[place] = Teacher.of(logits_NV, teaches)
        text_loss = functional.cross_entropy(logits_NV, target_N, reduction="sum")
        if words is None or not distill:
            return text_loss, text_loss.detach()
        learnt = distill * words.cross_entropy(logits_NV)
        if distill < 1:
            learnt = learnt + (1 - distill) * text_loss
        return learnt, text_loss.detach()

    parts = [
        part(place, hidden)
        if len(hiddens) == 1
        else checkpoint(part, place, hidden, use_reentrant=False)
        for place, hidden in enumerate(hiddens)
    ]
    objective, text_loss = (
        torch.stack(sums).sum() / len(target_N) for sums in zip(*parts, strict=True)
    )
    teaching = Teacher.joined([taught[place] for place in sorted(taught)]) if teaches else None
    return ShapeLoss(objective, text_loss, teaching)


def balance_factor(full: float, own: float, limit: float) -> float:
    """AmoebaLLM's loss-magnitude balancing: `full / own`, kept within `1 / limit` .. `limit`.

    The published form has no bound; with a loss that can reach 0 it diverges.
    """
    if own <= full / limit:
        return limit
    return max(full / own, 1 / limit)


def _log_rest(logits_NV: torch.Tensor, token_NK: torch.Tensor) -> torch.Tensor:
    """Log of the summed exponentials of all entries but the named ones, `[N]`."""
    return logits_NV.scatter(-1, token_NK, float("-inf")).logsumexp(-1)
