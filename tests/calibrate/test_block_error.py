"""The error of a block is that of its output, behind the rounded blocks before it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pliant.bits import EncodedMatrix, UniformCodec
from pliant.calibrate import block_errors, decode_matrix
from pliant.errors import VerificationError
from pliant.spec import BLOCK_MATRICES

CODEC = UniformCodec()


def encoded_of(supernet: Any) -> dict[str, EncodedMatrix]:
    return {
        name: CODEC.encode(weight.numpy().astype(np.float32))
        for name, weight in supernet.weights.items()
        if weight.ndim == 2
    }


def tokens(supernet: Any) -> torch.Tensor:
    return torch.randint(0, supernet.spec.vocab_size, (3, 12))


def test_errors_are_relative_to_what_a_block_adds_and_carried_on(make_supernet: Any) -> None:
    supernet = make_supernet()
    stored, tokens_BT = encoded_of(supernet), tokens(supernet)
    found = block_errors(supernet, tokens_BT, CODEC, stored.__getitem__, (2, 8))
    assert list(found) == list(range(supernet.spec.num_blocks))
    dense_BTD = rounded_BTD = supernet.embed(tokens_BT)
    with torch.no_grad():
        for block, errors in found.items():
            changed = supernet.sharing(dict(supernet.weights))
            for name in (f"blocks.{block}.{matrix}" for matrix in BLOCK_MATRICES):
                decoded = torch.from_numpy(decode_matrix(CODEC, stored[name], 2))
                changed.weights[name] = decoded.to(supernet.weights[name])
            target_BTD = supernet.block(block, dense_BTD)
            rounded_BTD = changed.block(block, rounded_BTD)
            error = (rounded_BTD - target_BTD).square().mean()
            added = (target_BTD - dense_BTD).square().mean()
            assert errors[2] == pytest.approx(float(error / added), rel=1e-4)
            assert 0 < errors[8] < 0.01 * errors[2]
            dense_BTD = target_BTD


def test_what_is_not_finite_is_refused_with_its_block(make_supernet: Any) -> None:
    supernet = make_supernet()
    stored = encoded_of(supernet)
    stored["blocks.1.down"].scales[:] = np.float16(np.inf).view(np.uint16)
    with pytest.raises(VerificationError, match="block 1 is not finite at 3 planes"):
        block_errors(supernet, tokens(supernet), CODEC, stored.__getitem__, (3,))
