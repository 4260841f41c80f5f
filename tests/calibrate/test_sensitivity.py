"""Sensitivities are the measured losses of models that are really cut along one axis."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from pliant.bits import EncodedMatrix, codecs
from pliant.calibrate import decode_matrix, mean_loss, measure_sensitivities, sensitivity
from pliant.models import Supernet
from pliant.shape import SubnetShape
from pliant.spec import BLOCK_MATRICES

MakeSupernet = Callable[..., Supernet]
CODEC = codecs["uniform"]
DEPTHS = {6: (0, 1, 2, 3, 4, 5), 4: (0, 2, 3, 5), 3: (0, 3, 5)}


def rounded(supernet: Supernet, planes: int, is_rounded: Callable[[str], bool]) -> Supernet:
    weights = dict(supernet.weights)
    for name, weight in weights.items():
        if is_rounded(name):
            encoded = CODEC.encode(weight.numpy(), name)
            weights[name] = torch.from_numpy(CODEC.decode(encoded, planes))
    return Supernet(supernet.spec, weights, supernet.shape)


@pytest.mark.parametrize("tied", [True, False])
def test_each_axis_is_the_loss_of_the_model_cut_along_it(
    make_supernet: MakeSupernet, tokens_BT: torch.Tensor, tied: bool
) -> None:
    supernet = make_supernet(tied_embeddings=tied, mlp_bias=True)
    found = measure_sensitivities(
        supernet, tokens_BT, DEPTHS, CODEC, widths=(1.0, 0.5), planes=(2, 8), batch_size=2
    )
    assert found.dense_loss == pytest.approx(mean_loss(supernet, tokens_BT), rel=1e-6)
    assert found.depth[6] == found.dense_loss
    for depth, blocks in DEPTHS.items():
        shape = SubnetShape.uniform(supernet.spec, blocks, 1.0)
        assert found.depth[depth] == pytest.approx(mean_loss(supernet, tokens_BT, shape), rel=1e-6)
    shape = SubnetShape.uniform(supernet.spec, DEPTHS[6], 0.5)
    assert set(found.width) == {1.0, 0.5}
    assert found.width[0.5] == pytest.approx(mean_loss(supernet, tokens_BT, shape), rel=1e-6)
    assert set(found.planes) == {2, 8}
    for planes, loss in found.planes.items():
        body = rounded(
            supernet, planes, lambda name: name.endswith(tuple(f".{m}" for m in BLOCK_MATRICES))
        )
        assert loss == pytest.approx(mean_loss(body, tokens_BT), rel=1e-6)
    assert set(found.vocabulary_planes) == set(range(1, 9))
    for planes, loss in found.vocabulary_planes.items():
        vocabulary = rounded(supernet, planes, lambda name: name in ("embedding", "head"))
        assert loss == pytest.approx(mean_loss(vocabulary, tokens_BT), rel=1e-6)
    assert found.predict(4, 0.5, 8, 4) == pytest.approx(
        found.depth[4] + found.width[0.5] + found.planes[8] + found.vocabulary_planes[4]
        - 3 * found.dense_loss
    )  # fmt: skip


def test_all_planes_cost_almost_nothing(
    make_supernet: MakeSupernet, tokens_BT: torch.Tensor
) -> None:
    found = measure_sensitivities(make_supernet(), tokens_BT, DEPTHS, CODEC, widths=(1.0,))
    assert abs(found.planes[8] - found.dense_loss) < 0.02 * found.dense_loss
    assert abs(found.planes[1] - found.dense_loss) > abs(found.planes[8] - found.dense_loss)


def test_known_depths_and_stored_planes_are_used(
    make_supernet: MakeSupernet, tokens_BT: torch.Tensor
) -> None:
    supernet = make_supernet()
    asked: list[str] = []

    def encoded(name: str) -> EncodedMatrix:
        asked.append(name)
        return CODEC.encode(supernet.weights[name].numpy(), name)

    known = {blocks: float(len(blocks)) for blocks in DEPTHS.values()}
    steps: list[tuple[str, int, int]] = []
    found = measure_sensitivities(
        supernet, tokens_BT, DEPTHS, CODEC, widths=(1.0,), vocabulary_planes=(4,),
        encoded=encoded, known_depths=known, progress=lambda *step: steps.append(step),
    )  # fmt: skip
    assert found.depth == {6: 6.0, 4: 4.0, 3: 3.0}
    assert len(asked) == len(set(asked)) == 6 * 7 + 2
    assert steps[0][1] == 0
    assert steps[-1][1] == steps[-1][2]


@pytest.mark.parametrize("shape", [(32, 64), (97, 70), (33, 130), (1, 1)])
def test_decoding_in_parts_is_decoding(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensitivity, "_WEIGHTS_AT_ONCE", 32 * shape[1])
    weight_OI = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    encoded = CODEC.encode(weight_OI)
    for planes in (1, 3, 8):
        whole_OI = CODEC.decode(encoded, planes)
        assert np.array_equal(decode_matrix(CODEC, encoded, planes), whole_OI)
