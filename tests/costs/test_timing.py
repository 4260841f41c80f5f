"""Rooflines, calibrated times, transfers: identities and monotonicities over random models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pliant.costs import Step, Widths, prefill_steps, step_graph
from pliant.costs.calibration import Calibration, ProductPoint, Terms, step_seconds, step_terms
from pliant.costs.device import PROFILES, Device, Figure, read_device
from pliant.costs.least_squares import median_error, rank_correlation, relative_fit
from pliant.costs.timing import (
    decode_time,
    energy_joules,
    expected_step,
    operator_bound,
    operator_times,
    prefill_time,
)
from pliant.costs.transfer import fit_transfer, transferred_seconds
from pliant.errors import UsageError
from pliant.spec import ModelSpec
from pliant.subnet import Subnet

SPEC = ModelSpec(
    architecture="llama", vocab_size=90, hidden_size=64, num_blocks=2, num_heads=4, num_groups=2,
    head_dim=16, ffn_size=64, max_context=512, attention_scale=0.25,
)  # fmt: skip
BOARD = read_device(PROFILES / "raspberry-pi-5.toml")


def with_figures(device: Device, bandwidth: float = 1.0, rate: float = 1.0) -> Device:
    """The device with its bandwidth and rates multiplied."""

    def scaled(figure: Figure, factor: float) -> Figure:
        return msgspec.structs.replace(figure, value=figure.value * factor, derived=())

    rates = {name: scaled(figure, rate) for name, figure in device.rates.items()}
    return msgspec.structs.replace(
        device, bandwidth=scaled(device.bandwidth, bandwidth), rates=rates
    )


def calibration(threads: int = 1, slower: float = 1.0) -> Calibration:
    points = [
        ProductPoint(
            planes=planes, tokens=tokens, set_bytes=float(size),
            seconds=slower * tokens * (1 + planes + size / 2**24) * 1e-12 / threads,
        )
        for planes in range(1, 9) for tokens in (1, 4, 128) for size in (2**18, 2**26)
    ]  # fmt: skip
    seconds = Terms(product=1.0, load=1e-10, row=3e-11, entry=1e-9, value=1e-9, gate=2e-9,
                    phase=1e-7 * (threads - 1), step=1e-5)  # fmt: skip
    return Calibration(threads=threads, kernels="avx2", products=tuple(points), seconds=seconds,
                       decode_error=0.05, prefill_error=0.1)  # fmt: skip


@given(st.data(), st.integers(1, 40), st.integers(0, 60))
@settings(max_examples=12, deadline=None)
def test_a_roofline_is_the_larger_of_two_times(
    subnets: Callable[[], st.SearchStrategy[Subnet]], data: st.DataObject, tokens: int, cached: int
) -> None:
    subnet = data.draw(subnets())
    step = Step(tokens=tokens, cached=cached)
    graph = step_graph(subnet, step)
    for item in graph.operators:
        seconds, peak = operator_bound(item, BOARD)
        times = {
            "arithmetic": item.operations / BOARD.rate(item.arithmetic),
            "memory": item.memory_bytes / BOARD.bandwidth.value,
        }
        assert seconds == max(times.values()) == times[peak]
    whole = expected_step(graph, step, BOARD)
    assert sum(line.bound_seconds for line in operator_times(graph, step, BOARD)) == pytest.approx(
        whole.bound_seconds, rel=1e-12
    )
    assert whole.seconds > whole.bound_seconds


@given(st.data(), st.sampled_from(["bandwidth", "rate"]), st.floats(1.0, 50.0))
@settings(max_examples=12, deadline=None)
def test_a_better_device_is_no_slower(
    subnets: Callable[[], st.SearchStrategy[Subnet]], data: st.DataObject, part: str, factor: float
) -> None:
    subnet = data.draw(subnets())
    better = with_figures(BOARD, **{part: factor})
    for time in (lambda d: decode_time(subnet, d, 30), lambda d: prefill_time(subnet, d, 50)):
        slow, fast = time(BOARD), time(better)
        assert fast.bound_seconds <= slow.bound_seconds * (1 + 1e-12)
        assert fast.seconds <= slow.seconds * (1 + 1e-12)


@given(st.data())
@settings(max_examples=12, deadline=None)
def test_decoding_one_sequence_tends_to_bytes_over_bandwidth(
    subnets: Callable[[], st.SearchStrategy[Subnet]], data: st.DataObject
) -> None:
    """With endless arithmetic only the bytes count; with endless bandwidth only operations."""
    subnet = data.draw(subnets())
    graph = step_graph(subnet, Step.decode(20))
    bound = expected_step(graph, Step.decode(20), with_figures(BOARD, rate=1e6)).bound_seconds
    assert bound == pytest.approx(graph.memory_bytes / BOARD.bandwidth.value, rel=1e-3)
    step = Step(tokens=200)
    many = step_graph(subnet, step)
    bound = expected_step(many, step, with_figures(BOARD, bandwidth=1e6)).bound_seconds
    operations = sum(
        item.count * item.operations / BOARD.rate(item.arithmetic) for item in many.operators
    )
    assert bound == pytest.approx(operations, rel=1e-3)


@given(st.data(), st.integers(2, 40))
@settings(max_examples=12, deadline=None)
def test_generation_has_a_closed_form(
    subnets: Callable[[], st.SearchStrategy[Subnet]], data: st.DataObject, tokens: int
) -> None:
    """Where no operator changes its bound, decoding time is affine in the context."""
    subnet = data.draw(subnets())
    windows = tuple(0 for _ in subnet.spec.block_windows)
    subnet = msgspec.structs.replace(
        subnet, spec=msgspec.structs.replace(subnet.spec, block_windows=windows)
    )
    device = with_figures(BOARD, rate=1e5)  # all bound by memory
    times = [decode_time(subnet, device, context).bound_seconds for context in range(1, tokens + 1)]
    assert sum(times) == pytest.approx(tokens * (times[0] + times[-1]) / 2, rel=1e-9)


@given(st.data(), st.floats(1e-3, 1e3))
@settings(max_examples=12, deadline=None)
def test_decoding_time_is_convex_in_the_context(
    subnets: Callable[[], st.SearchStrategy[Subnet]], data: st.DataObject, rate: float
) -> None:
    """Each operator takes the larger of two affine times, wherever it changes its bound (A2)."""
    subnet = data.draw(subnets())
    windows = tuple(0 for _ in subnet.spec.block_windows)
    subnet = msgspec.structs.replace(
        subnet, spec=msgspec.structs.replace(subnet.spec, block_windows=windows)
    )
    device = with_figures(BOARD, rate=rate)
    times = np.array([decode_time(subnet, device, n * 40).bound_seconds for n in range(1, 12)])
    slopes = np.diff(times)
    assert np.all(slopes >= 0)
    assert np.all(np.diff(slopes) >= -1e-9 * times[-1])


@given(st.data())
@settings(max_examples=12, deadline=None)
def test_planes_change_nothing_where_arithmetic_binds(
    subnets: Callable[[], st.SearchStrategy[Subnet]], data: st.DataObject
) -> None:
    subnet = data.draw(subnets())
    slow = with_figures(BOARD, rate=1e-6)
    few, many = (
        prefill_time(Subnet.full(subnet.spec, planes), slow, 64).bound_seconds for planes in (1, 8)
    )
    endless = with_figures(slow, bandwidth=1e6)
    operations = prefill_time(Subnet.full(subnet.spec, 8), endless, 64).bound_seconds
    assert few == pytest.approx(operations, rel=1e-3)
    assert many == pytest.approx(operations, rel=1e-3)


@given(st.data())
@settings(max_examples=12, deadline=None)
def test_fewer_planes_speed_up_decoding(
    subnets: Callable[[], st.SearchStrategy[Subnet]], data: st.DataObject
) -> None:
    subnet = data.draw(subnets())
    for device in (BOARD, msgspec.structs.replace(BOARD, calibrations=(calibration(),))):
        times = [
            decode_time(Subnet.full(subnet.spec, planes), device, 9).seconds
            for planes in (8, 6, 5, 3, 1)
        ]
        assert times == sorted(times, reverse=True)


def test_calibrated_steps_add_up(tiny: ModelSpec) -> None:
    subnet = Subnet.full(tiny)
    step = Step(tokens=9, cached=20)
    graph = step_graph(subnet, step)
    known = calibration()
    terms = step_terms(graph, step, known)
    assert terms.step == 1
    assert terms.phase == 9 * 4 + 2
    # Scores of 4 heads and 4 blocks; keys and values are loaded once for all 9 tokens of a tile.
    visible = step.visible()
    assert terms.entry == 4 * 4 * visible
    assert terms.row == 2 * 16 * terms.entry
    assert terms.load == pytest.approx(2 * 16 * 2 * 4 * visible / 9)
    assert terms.gate == 4 * 9 * 176
    assert step_seconds(graph, step, [known]) == pytest.approx(terms.dot(known.seconds))


def test_small_steps_take_the_faster_number_of_threads(tiny: ModelSpec) -> None:
    subnet = Subnet.full(tiny)
    step = Step(tokens=8, cached=4)
    graph = step_graph(subnet, step)
    one, two = calibration(1), calibration(2, slower=9.0)
    assert step_seconds(graph, step, [one, two]) == step_seconds(graph, step, [one])
    single = Step.decode(4)
    tiny_graph = step_graph(Subnet.full(SPEC), single)
    # Less than 200 000 weights: one thread whatever the other would take.
    quick = msgspec.structs.replace(two, seconds=Terms())
    assert step_seconds(tiny_graph, single, [one, quick]) == step_seconds(tiny_graph, single, [one])


def test_products_are_interpolated() -> None:
    known = calibration()
    low, high = known.product_seconds(3, 4, 2.0**18), known.product_seconds(3, 128, 2.0**18)
    assert low < known.product_seconds(3, 60, 2.0**18) < high
    assert known.product_seconds(3, 256, 2.0**18) == pytest.approx(2 * high)
    small, large = known.product_seconds(3, 1, 2.0**18), known.product_seconds(3, 1, 2.0**26)
    assert known.product_seconds(3, 1, 2.0**22) == pytest.approx((small + large) / 2)
    assert known.product_seconds(3, 1, 1.0) == small
    assert known.product_seconds(3, 1, 1e12) == large
    with pytest.raises(UsageError, match="9 planes"):
        known.product_seconds(9, 1, 1.0)


def test_threads_that_were_not_probed_fall_back_to_the_data_sheet(tiny: ModelSpec) -> None:
    subnet = Subnet.full(tiny)
    device = msgspec.structs.replace(BOARD, calibrations=(calibration(2),))
    assert decode_time(subnet, device, 3).basis == "calibrated, 2 threads"
    assert "data sheet" in decode_time(subnet, device, 3, threads=1).basis


def test_energy_is_watts_times_seconds() -> None:
    assert energy_joules(2.0, BOARD) is None
    gpu = read_device(PROFILES / "l4.toml")
    assert energy_joules(2.0, gpu) == 144.0


@given(st.lists(st.floats(1e-12, 1e-9), min_size=2, max_size=2), st.integers(5, 14))
@settings(max_examples=12, deadline=None)
def test_a_transfer_finds_a_linear_device(rates: list[float], count: int) -> None:
    samples = []
    for place in range(count):
        spec = msgspec.structs.replace(SPEC, ffn_size=64 * (1 + place % 5))
        step = Step(tokens=1 + place % 3, cached=7 * place)
        samples.append(step_graph(Subnet.full(spec, 1 + place % 8), step))
    seconds = [rates[0] * g.operations + rates[1] * g.memory_bytes + 1e-4 for g in samples]
    found = fit_transfer(samples, seconds)
    foreseen = np.array([transferred_seconds(graph, found) for graph in samples])
    assert median_error(foreseen, np.array(seconds)) < 0.02
    device = msgspec.structs.replace(BOARD, transfer=found)
    assert expected_step(samples[0], Step(), device).seconds == pytest.approx(foreseen[0])


def test_transfers_that_cannot_be(tiny: ModelSpec) -> None:
    graph = step_graph(Subnet.full(tiny), Step())
    with pytest.raises(UsageError, match="4 at least"):
        fit_transfer([graph] * 3, [1.0] * 3)
    with pytest.raises(UsageError, match="above 0"):
        fit_transfer([graph] * 4, [1.0, 1.0, 1.0, 0.0])


def test_least_squares_recovers_and_stays_above_zero() -> None:
    draw = np.random.default_rng(0)
    sizes, truth = draw.random((30, 3)), np.array([2.0, 0.0, 5.0])
    np.testing.assert_allclose(relative_fit(sizes, sizes @ truth), truth, atol=1e-5)
    opposed = relative_fit(np.array([[1.0, 1.0], [1.0, 2.0]]), np.array([2.0, 1.0]))
    assert opposed.min() >= 0


def test_rank_correlation_is_spearmans() -> None:
    first = np.array([1.0, 2.0, 2.0, 9.0])
    assert rank_correlation(first, first**3) == pytest.approx(1)
    assert rank_correlation(first, -first) == pytest.approx(-1)
    assert rank_correlation(np.array([1.0]), np.array([2.0])) == 1.0
    # 1 - 6 * (1 + 1) / (4 * 15) without ties
    assert rank_correlation(
        np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 1.0, 3.0, 4.0])
    ) == pytest.approx(0.8)


def test_cache_widths_change_only_attention(tiny: ModelSpec, tmp_path: Path) -> None:
    subnet = Subnet.full(tiny)
    wide = decode_time(subnet, BOARD, 400, widths=Widths.of_cache(32))
    half = decode_time(subnet, BOARD, 400, widths=Widths.of_cache(16))
    saved = subnet.cache_bytes(401) / BOARD.bandwidth.value
    assert wide.bound_seconds - half.bound_seconds == pytest.approx(saved)
    assert len(prefill_steps(400)) == 4
