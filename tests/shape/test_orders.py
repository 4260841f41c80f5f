"""Width scores match their papers' definitions; orders are permutations that can be undone."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from pliant.errors import CheckpointError, DataError, UsageError
from pliant.shape import (
    WIDTH_METHODS,
    ChannelStatistics,
    WidthMethod,
    WidthOrders,
    bias_compensation,
    descending_order,
    group_scores,
    width_scores,
)
from pliant.spec import ModelSpec


def make_spec() -> ModelSpec:
    return ModelSpec(
        architecture="llama", vocab_size=97, hidden_size=48, num_blocks=2, num_heads=6,
        num_groups=3, head_dim=10, ffn_size=17, max_context=64, attention_scale=10**-0.5,
    )  # fmt: skip


def make_case(seed: int = 0, channels: int = 12) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    inputs_NI = random.normal(random.normal(size=channels), random.random(channels), (64, channels))
    return inputs_NI, random.normal(size=(7, channels)).astype(np.float32)


def test_identity_and_inverse() -> None:
    spec = make_spec()
    identity = WidthOrders.identity(spec)
    identity.check(spec)
    assert identity.inverse() == identity
    random = np.random.default_rng(5)
    orders = WidthOrders(
        tuple(tuple(random.permutation(3).tolist()) for _ in range(2)),
        tuple(tuple(random.permutation(17).tolist()) for _ in range(2)),
    )
    orders.check(spec)
    undone = orders.inverse()
    for order, back in zip(orders.neurons, undone.neurons, strict=True):
        assert [order[place] for place in back] == list(range(17))
    assert undone.inverse() == orders
    assert msgspec.json.decode(msgspec.json.encode(orders), type=WidthOrders) == orders


@pytest.mark.parametrize(
    ("groups", "neurons"),
    [
        (((0, 1, 1),), ((0, 1),)),
        (((0, 1, 3),), ((0, 1),)),
        (((0, 1, 2),), ()),
        (((0, -1, 1),), ((0,),)),
    ],
)
def test_what_is_not_a_permutation_is_refused(
    groups: tuple[tuple[int, ...], ...], neurons: tuple[tuple[int, ...], ...]
) -> None:
    with pytest.raises(UsageError):
        WidthOrders(groups, neurons)


def test_orders_of_another_model_are_refused() -> None:
    three, neurons = tuple(range(3)), tuple(range(17))
    for orders in (
        WidthOrders((three,), (neurons,)),
        WidthOrders((three, (0, 1)), (neurons, neurons)),
        WidthOrders((three, three), (neurons, tuple(range(16)))),
    ):
        with pytest.raises(UsageError):
            orders.check(make_spec())


def test_scores_are_those_of_the_papers() -> None:
    inputs_NI, weight_OI = make_case()
    gradient_OI = np.random.default_rng(9).normal(size=weight_OI.shape)
    statistics = ChannelStatistics.of(inputs_NI).with_gradient(gradient_OI)
    expected: dict[WidthMethod, np.ndarray] = {
        "flap": inputs_NI.var(axis=0, ddof=1) * np.linalg.norm(weight_OI, axis=0) ** 2,
        "wanda-sp": np.abs(weight_OI).sum(axis=0) * np.linalg.norm(inputs_NI, axis=0),
        "activation-mean": np.abs(inputs_NI).mean(axis=0),
        "taylor": np.abs(weight_OI * gradient_OI).sum(axis=0),
        "magnitude": np.linalg.norm(weight_OI, axis=0) ** 2,
    }
    for method, scores_I in expected.items():
        found_I = width_scores(method, statistics, weight_OI)
        assert found_I.dtype == np.float64
        np.testing.assert_allclose(found_I, scores_I, rtol=1e-6)


@pytest.mark.parametrize("method", WIDTH_METHODS)
def test_shuffling_channels_shuffles_scores_only(method: WidthMethod) -> None:
    if method == "random":
        pytest.skip("random does not look at channels")
    inputs_NI, weight_OI = make_case(1)
    shuffle = np.random.default_rng(2).permutation(12)
    gradient_OI = np.sin(np.arange(weight_OI.size)).reshape(weight_OI.shape)

    def score(places: np.ndarray) -> np.ndarray:
        statistics = ChannelStatistics.of(inputs_NI[:, places])
        statistics = statistics.with_gradient(gradient_OI[:, places])
        return width_scores(method, statistics, weight_OI[:, places])

    np.testing.assert_allclose(score(shuffle), score(np.arange(12))[shuffle], rtol=1e-12)


def test_a_channel_that_never_varies_scores_nothing_under_flap() -> None:
    inputs_NI, weight_OI = make_case(3)
    inputs_NI[:, 4] = 1000.25
    inputs_NI[:, 7] = 0.0
    statistics = ChannelStatistics.of(inputs_NI)
    flap_I = width_scores("flap", statistics, weight_OI)
    assert flap_I[4] == flap_I[7] == 0
    assert set(descending_order(flap_I)[-2:]) == {4, 7}
    assert descending_order(width_scores("wanda-sp", statistics, weight_OI))[-1] == 7


def test_activation_mean_ignores_a_scale_shared_by_all_channels() -> None:
    inputs_NI, weight_OI = make_case(4)
    plain = width_scores("activation-mean", ChannelStatistics.of(inputs_NI), weight_OI)
    scaled = width_scores("activation-mean", ChannelStatistics.of(8 * inputs_NI), weight_OI)
    assert descending_order(plain) == descending_order(scaled)


def test_random_scores_follow_their_seed() -> None:
    inputs_NI, weight_OI = make_case()
    statistics = ChannelStatistics.of(inputs_NI)
    one, again, two = (width_scores("random", statistics, weight_OI, seed) for seed in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, two)


def test_group_scores_sum_all_channels_of_all_heads_of_the_group() -> None:
    channel_scores_I = np.arange(24.0)
    np.testing.assert_array_equal(
        group_scores(channel_scores_I, 3), [np.arange(8).sum(), np.arange(8, 16).sum(), 156]
    )


def test_equal_scores_keep_their_order() -> None:
    assert descending_order([1.0, 2.0, 1.0, 2.0, 3.0]) == (4, 1, 3, 0, 2)
    assert descending_order(np.zeros(1000)) == tuple(range(1000))


def test_scores_that_cannot_be_given_say_why() -> None:
    inputs_NI, weight_OI = make_case()
    statistics = ChannelStatistics.of(inputs_NI)
    with pytest.raises(UsageError, match="flap, wanda-sp"):
        width_scores("best", statistics, weight_OI)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="12 channels for a matrix of 11"):
        width_scores("flap", statistics, weight_OI[:, 1:])
    with pytest.raises(DataError, match="gradients"):
        width_scores("taylor", statistics, weight_OI)
    inputs_NI[0, 0] = np.inf
    with np.errstate(invalid="ignore"):
        broken = ChannelStatistics.of(inputs_NI)
    with pytest.raises(CheckpointError, match="not finite"):
        width_scores("flap", broken, weight_OI)


def test_with_bias_compensation_a_constant_channel_is_cut_for_free() -> None:
    inputs_NI, weight_OI = make_case(6)
    inputs_NI[:, 8:] = inputs_NI[0, 8:]
    mean_I = ChannelStatistics.of(inputs_NI).mean
    bias_O = bias_compensation(weight_OI, mean_I, 8)
    assert bias_O.dtype == np.float32
    cut_NO = inputs_NI[:, :8] @ weight_OI[:, :8].T + bias_O
    np.testing.assert_allclose(cut_NO, inputs_NI @ weight_OI.T, atol=1e-6)
    assert not bias_compensation(weight_OI, mean_I, 12).any()
    with pytest.raises(UsageError):
        bias_compensation(weight_OI, mean_I, 13)


def test_bias_compensation_removes_the_mean_error_of_any_cut() -> None:
    inputs_NI, weight_OI = make_case(7)
    mean_I = ChannelStatistics.of(inputs_NI).mean
    for kept in range(13):
        cut_NO = inputs_NI[:, :kept] @ weight_OI[:, :kept].T + bias_compensation(
            weight_OI, mean_I, kept
        )
        error_NO = inputs_NI @ weight_OI.T - cut_NO
        np.testing.assert_allclose(error_NO.mean(axis=0), 0, atol=2e-6)
