"""Studies as values, designs of what to measure, and predicted speeds."""

import numpy as np
import pytest

from pliant.bits import BitPlan
from pliant.errors import DataError
from pliant.search import SpeedPredictor, Study, spread_design
from pliant.shape import SubnetShape
from pliant.spec import ModelSpec
from pliant.subnet import Subnet

SPEC = ModelSpec(
    architecture="llama", vocab_size=101, hidden_size=48, num_blocks=6, num_heads=4, num_groups=2,
    head_dim=12, ffn_size=160, max_context=64, attention_scale=12**-0.5, tied_embeddings=True,
)  # fmt: skip


def cut(depth: int, planes: int) -> Subnet:
    shape = SubnetShape.uniform(SPEC, tuple(range(depth)), 1.0)
    return Subnet(SPEC, shape, BitPlan.uniform(depth, planes))


CUTS = [cut(depth, planes) for depth in (6, 4, 2) for planes in (2, 4, 8)]


def test_a_study_survives_json_and_remembers() -> None:
    study = Study(text="a", weights="b")
    for place, subnet in enumerate(CUTS):
        study = study.with_loss(subnet, 1.0 + place).with_seconds(subnet, "here", 0.1 * place)
    study = study.with_seconds(CUTS[0], "there", 9.0)
    again = Study.from_json(study.to_json())
    assert again == study
    assert again.losses(SPEC) == {subnet: 1.0 + place for place, subnet in enumerate(CUTS)}
    assert again.seconds(SPEC, "there") == {CUTS[0]: 9.0}
    assert again.seconds(SPEC, "nowhere") == {}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"text": "a"}',
        b'{"text": "a", "weights": "b", "more": 1}',
        b"\xff",
        b'{"text": "\xff"}',
    ],
)
def test_what_is_no_study_is_refused(content: bytes) -> None:
    with pytest.raises(DataError, match="damaged"):
        Study.from_json(content)


def test_a_design_covers_before_it_repeats() -> None:
    """Of clusters far apart each gets a point before any gets two."""
    dice = np.random.default_rng(0)
    centres = np.array([[0, 0], [10, 0], [0, 10], [10, 10], [5, 5]], float)
    points = np.concatenate([centre + dice.normal(0, 0.1, (20, 2)) for centre in centres])
    chosen = spread_design(points, 5, first=3)
    assert chosen[0] == 3
    assert sorted(place // 20 for place in chosen) == [0, 1, 2, 3, 4]
    assert len(set(spread_design(points, 30))) == 30


def test_a_design_ends_where_points_repeat() -> None:
    assert spread_design(np.zeros((7, 2)), 5) == [0]
    assert spread_design(np.array([[0.0], [1.0], [1.0]]), 9) == [0, 1]


def test_speeds_follow_bytes_and_halves() -> None:
    def seconds(subnet: Subnet) -> float:
        return 1e-4 + 2e-3 * subnet.weight_bytes / 1e6 + 3e-5 * subnet.shape.num_halves

    predictor = SpeedPredictor({net: seconds(net) for net in CUTS[::2]})
    np.testing.assert_allclose(predictor.predict(CUTS), [seconds(net) for net in CUTS])
    assert predictor.error < 1e-9


def test_speeds_never_fall_with_bytes() -> None:
    """Noise that says otherwise is not believed, and what was believed wrongly is told."""
    noisy = {net: 1 / (1 + place) for place, net in enumerate(CUTS)}
    predictor = SpeedPredictor(noisy)
    found = dict(zip(CUTS, predictor.predict(CUTS), strict=True))
    assert found[cut(6, 8)] >= found[cut(6, 2)] >= found[cut(2, 2)] > 0
    assert predictor.error > 0.1
    with pytest.raises(DataError, match="3 measured"):
        SpeedPredictor(dict(list(noisy.items())[:2]))
