"""The cache of a bit plan: what is left out is float16, what is given is checked."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pliant.bits import BitPlan
from pliant.bits.cache import CACHE_BITS, CacheFormat, bits_of
from pliant.errors import UsageError

FORMATS = st.builds(
    CacheFormat,
    bits=st.sampled_from(list(CACHE_BITS.values())),
    window=st.integers(0, 5).map(lambda units: 64 * units),
)


@given(FORMATS)
def test_plans_keep_their_cache(cache: CacheFormat) -> None:
    plan = BitPlan.uniform(2, 4, cache=cache)
    assert msgspec.json.decode(msgspec.json.encode(plan), type=BitPlan) == plan
    assert plan.cache == cache


def test_plans_of_before_are_float16() -> None:
    plan = BitPlan.uniform(2, 4)
    old = msgspec.to_builtins(plan)
    del old["cache"]
    assert msgspec.convert(old, BitPlan) == plan
    assert plan.cache == CacheFormat(bits=16)


@pytest.mark.parametrize(
    "cache", [{"bits": 5}, {"bits": 4, "window": 63}, {"bits": 4, "window": -64}, {"rows": 1}, 4]
)
def test_caches_of_strangers_are_checked(cache: object) -> None:
    plan = msgspec.to_builtins(BitPlan.uniform(2, 4)) | {"cache": cache}
    with pytest.raises((msgspec.ValidationError, UsageError)):
        msgspec.json.decode(msgspec.json.encode(plan), type=BitPlan)


@given(FORMATS, st.none() | st.sampled_from(list(CACHE_BITS.values())))
def test_what_is_not_given_stays(cache: CacheFormat, bits: int | None) -> None:
    assert cache.but(bits).bits == (bits or cache.bits)
    if cache.but(bits).is_coded:
        assert cache.but(bits).window == cache.window
        assert cache.but(bits, 320) == CacheFormat(bits=bits or cache.bits, window=320)
    else:
        assert cache.but(bits) == cache.but(bits, 128)  # a window means nothing to them
    with pytest.raises(UsageError, match="window of 65"):
        cache.but(bits, 65)


def test_bits_of_names() -> None:
    assert [bits_of(name) for name in (None, "float16", "int3")] == [None, 16, 3]
    with pytest.raises(UsageError, match="int5"):
        bits_of("int5")
