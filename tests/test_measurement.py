import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pliant.errors import OutOfSpaceError, UsageError
from pliant.measurement import (
    Measurement,
    MemoryLimit,
    format_bytes,
    format_seconds,
    parse_bytes,
    parse_ratio,
    parse_seconds,
    peak_memory_bytes,
    repeat,
)


def test_reads_with_unit_spread_and_conditions() -> None:
    speed = Measurement.of([20.9, 21.34, 21.8], "token/s", "decode", "2 threads")
    assert str(speed) == "decode 21.3 token/s [20.9, 21.8] n=3, 2 threads"
    assert str(Measurement.of([0.01234], "s")) == "0.0123 s"


def test_repeat_calls_the_work_that_often() -> None:
    samples = iter([3.0, 1.0, 2.0])
    assert repeat(lambda: next(samples), "s", 3).median == 2.0


@pytest.mark.parametrize("samples", [[], [math.nan, 1.0]])
def test_refuses_what_is_no_measurement(samples: list[float]) -> None:
    with pytest.raises(UsageError, match="samples"):
        Measurement.of(samples, "s")


@given(st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=20))
def test_median_lies_between_low_and_high(samples: list[float]) -> None:
    found = Measurement.of(samples, "s")
    assert found.low <= found.median <= found.high
    assert found.n == len(samples)


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("6MB", 6_000_000), ("512MiB", 512 * 2**20), ("2GB", 2 * 10**9), ("2g", 2 * 10**9),
     ("800 kB", 800_000), ("4096", 4096), ("1.5 GiB", 3 * 2**29), (".5MB", 500_000)],
)  # fmt: skip
def test_sizes(text: str, num_bytes: int) -> None:
    assert parse_bytes(text) == num_bytes
    assert MemoryLimit.parse(text).num_bytes == num_bytes


@pytest.mark.parametrize("text", ["", "MB", "6 apples", "-3MB", "0", "0.1", "nan", "1e9", "6MB!"])
def test_wrong_sizes_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="6MB"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (6_020_000, "6.02 MB"), (2**31, "2.15 GB"), (12_345, "12.3 kB"),
     (999_900, "1.00 MB")],
)  # fmt: skip
def test_sizes_are_readable(num_bytes: int, text: str) -> None:
    assert format_bytes(num_bytes) == text


@given(st.integers(1, 10**15))
def test_a_formatted_size_reads_back_within_its_digits(num_bytes: int) -> None:
    assert parse_bytes(format_bytes(num_bytes)) == pytest.approx(num_bytes, rel=0.005)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("30s", 30), ("10min", 600), ("1.5h", 5400), ("1h30min", 5400), ("250ms", 0.25)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "soon", "-3s", "3 weeks", "0s", "1h,5s"])
def test_wrong_durations_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="10min"):
        parse_seconds(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0384, "38.4 ms"), (1.424, "1.42 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")],
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(("text", "ratio"), [("+5%", 0.05), ("5%", 0.05), ("0.05", 0.05), ("0", 0)])
def test_ratios(text: str, ratio: float) -> None:
    assert parse_ratio(text) == pytest.approx(ratio)


@pytest.mark.parametrize("text", ["", "-5%", "five", "5%%"])
def test_wrong_ratios_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"\+5%"):
        parse_ratio(text)


def test_a_limit_names_what_needed_too_much() -> None:
    limit = MemoryLimit.parse("2MB")
    limit.require(2_000_000, "a block")
    with pytest.raises(OutOfSpaceError, match=r"a block needs 2.10 MB .* 2.00 MB were given"):
        limit.require(2_100_000, "a block")


def test_peak_memory_grows_with_use_and_never_falls() -> None:
    before = peak_memory_bytes()
    data = bytearray(b"x" * (40 << 20))
    during = peak_memory_bytes()
    del data
    assert during >= before > 1 << 20
    assert peak_memory_bytes() >= during
