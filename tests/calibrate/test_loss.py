"""The token loss is the cross entropy of the next token, however it is batched."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from pliant.calibrate import loss, mean_loss
from pliant.models import Supernet
from pliant.shape import SubnetShape

MakeSupernet = Callable[..., Supernet]


def test_the_loss_is_that_of_the_definition(
    make_supernet: MakeSupernet, tokens_BT: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    supernet = make_supernet(tied_embeddings=True)
    logits_BTV = supernet(tokens_BT).double()
    expected = torch.nn.functional.cross_entropy(
        logits_BTV[:, :-1].flatten(0, 1), tokens_BT[:, 1:].flatten()
    )
    assert mean_loss(supernet, tokens_BT) == pytest.approx(float(expected), rel=1e-6)
    # Seven rows of logits at a time, and batches that do not divide the sequences.
    monkeypatch.setattr(loss, "_LOGIT_BYTES", 7 * 4 * 101)
    assert mean_loss(supernet, tokens_BT, batch_size=2) == pytest.approx(float(expected), rel=1e-6)


def test_the_loss_of_a_shape_is_that_of_the_sliced_model(
    make_supernet: MakeSupernet, tokens_BT: torch.Tensor
) -> None:
    supernet = make_supernet()
    shape = SubnetShape((0, 2, 5), (2, 2, 2), (64, 64, 64))
    sliced = mean_loss(supernet.sliced(shape), tokens_BT)
    assert mean_loss(supernet, tokens_BT, shape) == pytest.approx(sliced, rel=1e-6)
