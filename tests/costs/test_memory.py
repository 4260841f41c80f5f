import pytest
from hypothesis import given
from hypothesis import strategies as st

from pliant.bits import BitPlan
from pliant.bits.cache import CacheFormat
from pliant.costs import (
    WorkingSet,
    artifact_bytes,
    decode_traffic,
    subnet_memory,
    tokens_per_second_bound,
)
from pliant.errors import UsageError
from pliant.shape import SubnetShape
from pliant.spec import ModelSpec
from pliant.subnet import Subnet

SPEC = ModelSpec(
    architecture="llama", vocab_size=101, hidden_size=48, num_blocks=3, num_heads=4, num_groups=2,
    head_dim=12, ffn_size=160, max_context=64, attention_scale=12**-0.5,
)  # fmt: skip


def cut(depth: int, width: float, planes: int) -> Subnet:
    shape = SubnetShape.uniform(SPEC, tuple(range(depth)), width, alignment=32)
    return Subnet(SPEC, shape, BitPlan.uniform(depth, planes))


def test_weights_and_cache_are_the_counts_of_the_subnet() -> None:
    subnet = cut(3, 1.0, 4)
    cost = subnet_memory(subnet, WorkingSet(context=64, sequences=2))
    assert cost.weight_bytes == subnet.weight_bytes
    # keys and values of 2 groups x 12 in float16, 3 blocks, 64 tokens, 2 sequences
    # and 12 bytes of token, position and log-weight per entry
    assert cost.cache_bytes == 2 * 64 * (2 * 2 * 12 * 2 * 3 + 12)
    assert cost.total_bytes == cost.weight_bytes + cost.cache_bytes + cost.scratch_bytes


def test_float32_caches_are_twice_as_large() -> None:
    half = subnet_memory(cut(3, 1.0, 4), WorkingSet(context=64))
    full = subnet_memory(cut(3, 1.0, 4), WorkingSet(context=64, cache=CacheFormat(bits=32)))
    assert full.cache_bytes - 64 * 12 == 2 * (half.cache_bytes - 64 * 12)


def test_int8_caches_have_scales_beside_them() -> None:
    subnet = cut(3, 1.0, 4)
    cost = subnet_memory(subnet, WorkingSet(context=64, cache=CacheFormat(bits=8)))
    # keys and values of 2 groups: 12 codes and a scale, 3 blocks
    assert cost.cache_bytes == 64 * (2 * 2 * (12 + 4) * 3 + 12)
    traffic = decode_traffic(subnet, context=10, cache=CacheFormat(bits=8))
    assert traffic.cache_bytes == subnet.cache_bytes(11, 1)


@given(
    st.integers(1, 2), st.sampled_from([0.5, 0.75]), st.integers(1, 7), st.integers(0, 200),
    st.sampled_from(["depth", "width", "planes", "context", "chunk"]),
)  # fmt: skip
def test_every_axis_costs_memory(
    depth: int, width: float, planes: int, context: int, grown: str
) -> None:
    small = subnet_memory(cut(depth, width, planes), WorkingSet(context=context))
    large = subnet_memory(
        cut(
            depth + (grown == "depth"),
            1.0 if grown == "width" else width,
            planes + (grown == "planes"),
        ),
        WorkingSet(context=context + (grown == "context"), chunk=2 if grown == "chunk" else 1),
    )
    assert large.total_bytes > small.total_bytes


@pytest.mark.parametrize(
    "wrong",
    [
        {"context": -1}, {"context": 1, "sequences": 0}, {"context": 1, "chunk": 0},
    ],
)  # fmt: skip
def test_working_sets_that_cannot_run(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=r"cannot run|asked for"):
        WorkingSet(**wrong)


def test_an_artifact_holds_the_full_subnet() -> None:
    assert artifact_bytes(SPEC, 8) == Subnet.full(SPEC).weight_bytes


def test_traffic_of_untied_models_leaves_out_the_other_embedding_rows() -> None:
    subnet = Subnet.full(SPEC)
    traffic = decode_traffic(subnet, context=10)
    embedding = next(matrix for matrix in subnet.matrices() if matrix.name == "embedding")
    read = subnet.weight_bytes - embedding.num_bytes + embedding.num_bytes // SPEC.vocab_size
    assert traffic.weight_bytes == read
    assert traffic.cache_bytes == subnet.cache_bytes(11)


def test_a_window_bounds_the_cache_that_is_read() -> None:
    spec = ModelSpec(
        architecture="mistral", vocab_size=101, hidden_size=48, num_blocks=2, num_heads=4,
        num_groups=2, head_dim=12, ffn_size=160, max_context=64, attention_scale=12**-0.5,
        block_windows=(8, 0), tied_embeddings=True,
    )  # fmt: skip
    short, long = (decode_traffic(Subnet.full(spec), context) for context in (8, 40))
    per_block_token = 2 * 2 * 12 * 2
    assert long.cache_bytes - short.cache_bytes == per_block_token * (40 - 8)
    assert short.weight_bytes == Subnet.full(spec).weight_bytes


def test_the_bound_falls_with_traffic() -> None:
    slow, fast = (decode_traffic(cut(3, 1.0, planes), 10) for planes in (8, 2))
    assert tokens_per_second_bound(fast, 1e9) > tokens_per_second_bound(slow, 1e9)
    with pytest.raises(UsageError, match="bandwidth"):
        tokens_per_second_bound(fast, 0)
