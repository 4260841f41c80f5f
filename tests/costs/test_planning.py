"""Plans: identities of memory, context and concurrency; what is chosen; what is refused."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pliant.bits import plane_bytes, scale_bytes
from pliant.costs import Experts, read_described
from pliant.costs.catalogue import catalogue, catalogued, similar
from pliant.costs.device import PROFILES, read_device
from pliant.costs.planning import Choice, PlanRequest, mixture_bytes, plan_device, price
from pliant.errors import CheckpointError, DoesNotFitError, UnsupportedError, UsageError
from pliant.spec import ModelSpec
from pliant.subnet import Subnet

BOARD = read_device(PROFILES / "raspberry-pi-5.toml")


def choice(subnet: Subnet, planes: int = 8, cache_bits: int = 16, rank: float = 0.0) -> Choice:
    depth = len(subnet.shape.blocks)
    return Choice(
        depth=depth, width=1.0, planes=planes, cache_bits=cache_bits, subnet=subnet,
        rank=rank,
    )  # fmt: skip


@given(st.data(), st.integers(1, 400), st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_concurrency_and_context_fill_the_memory(
    subnets: Callable[[], st.SearchStrategy[Subnet]], data: st.DataObject, context: int, users: int
) -> None:
    """c contexts fit and c + 1 do not; the largest context fits and one more token does not."""
    subnet = data.draw(subnets())
    limit = 70_000_000
    request = PlanRequest(context=context, prompt=1, sequences=users, memory_bytes=limit)
    option = price(choice(subnet), BOARD, request)
    fixed = option.total_bytes - option.memory.cache
    each = option.memory.cache / users
    count = int(option.concurrency)
    assert fixed + count * each <= limit < fixed + (count + 1) * each
    token = each / context
    largest = option.largest_context
    assert fixed + users * largest * token <= limit
    full = largest == subnet.spec.max_context
    assert full or fixed + users * (largest + 1) * token > limit


def test_halving_the_cache_doubles_its_room(tiny: ModelSpec) -> None:
    subnet = Subnet.full(tiny)
    request = PlanRequest(context=500, prompt=8)
    wide, half = (price(choice(subnet, cache_bits=bits), BOARD, request) for bits in (32, 16))
    extra = 500 * 12  # positions, tokens and log-weights have a width of their own
    assert wide.memory.cache - extra == 2 * (half.memory.cache - extra)
    assert wide.concurrency < half.concurrency


def test_the_best_that_keeps_all_limits_is_chosen(tiny: ModelSpec) -> None:
    choices = [choice(Subnet.full(tiny, n), n, rank=8 - n) for n in range(1, 9)]
    free = plan_device(choices, BOARD, PlanRequest(context=64, prompt=8))
    assert free.require().choice.planes == 8
    limit = next(item for item in free.options if item.choice.planes == 3).total_bytes
    bound = plan_device(choices, BOARD, PlanRequest(context=64, prompt=8, memory_bytes=limit))
    assert bound.require().choice.planes == 3
    speed = bound.options[-1].tokens_per_second * 0.999
    quick = PlanRequest(context=64, prompt=8, tokens_per_second=speed)
    assert plan_device(choices, BOARD, quick).require().choice.planes == 1


def test_nothing_fits_and_the_nearest_is_named(tiny: ModelSpec) -> None:
    choices = [choice(Subnet.full(tiny, n), n, rank=8 - n) for n in (1, 8)]
    small = plan_device(choices, BOARD, PlanRequest(context=64, prompt=8, memory_bytes=10))
    assert small.nearest.choice.planes == 1
    with pytest.raises(DoesNotFitError, match="1 planes"):
        small.require()
    slow = plan_device(choices, BOARD, PlanRequest(context=64, prompt=8, tokens_per_second=1e12))
    with pytest.raises(DoesNotFitError, match="fast enough"):
        slow.require()
    # The watts of a board are not known, so no energy can be promised.
    hungry = plan_device(choices, BOARD, PlanRequest(context=64, prompt=8, joules=1e9))
    assert hungry.chosen is None
    with pytest.raises(UsageError, match="nothing to plan"):
        plan_device([], BOARD, PlanRequest(context=64, prompt=8))


@pytest.mark.parametrize("wrong", [{"context": 0}, {"context": 4, "prompt": 5}, {"joules": -1.0}])
def test_requests_that_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        PlanRequest(**wrong)  # type: ignore[arg-type]


def test_mixtures_store_all_their_experts(tiny: ModelSpec) -> None:
    subnet = Subnet.full(tiny, 4)
    experts = Experts(count=4, active=2, blocks=(0, 2))
    one = 2 * (4 * plane_bytes(176, 64) + scale_bytes(176, 64))
    one += 4 * plane_bytes(64, 176) + scale_bytes(64, 176)
    router = 8 * plane_bytes(4, 64) + scale_bytes(4, 64)
    assert mixture_bytes(subnet, experts) == 2 * (3 * one + router)
    shared = msgspec.structs.replace(experts, shared_neurons=176)
    assert mixture_bytes(subnet, shared) == 2 * (4 * one + router)


@pytest.mark.parametrize("name", list(catalogue()))
def test_every_model_of_the_catalogue_is_read(name: str) -> None:
    described = read_described(catalogue()[name])
    subnet = Subnet.full(described.spec, 4)
    billions = subnet.num_parameters / 1e9
    if described.experts is None:
        said = float(name.rpartition("-")[2].removesuffix("200K").rstrip("BbMmv.03") or 0)
        assert billions > 0.1 and said >= 0
    assert catalogued(name.partition("/")[2].upper()) == catalogue()[name]


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("qwen2.5-0.5b", 494_032_768), ("llama-3.2-1b", 1_235_814_400),
        ("llama-3.1-8b", 8_030_261_248), ("tinyllama-1.1b", 1_100_048_384),
        ("smollm2-135m", 134_515_008), ("gemma-2-2b", 2_614_341_888),
        ("mistral-7b-v0.3", 7_248_023_552), ("qwen3-0.6b", 596_049_920),
        ("yi-34b-200k", 34_388_917_248), ("gemma-3-1b", 999_885_952),
    ],
)  # fmt: skip
def test_parameters_are_those_that_were_published(name: str, parameters: int) -> None:
    config = catalogued(name)
    assert config is not None
    assert Subnet.full(read_described(config).spec).num_parameters == parameters


def test_mixtures_are_read() -> None:
    config = dict(catalogue()["Qwen/Qwen3-30B-A3B"])
    described = read_described(config)
    assert described.experts is not None
    assert (described.experts.count, described.experts.active) == (128, 8)
    assert described.spec.ffn_size == 768
    config |= {"mlp_only_layers": [1], "decoder_sparse_step": 2}
    experts = read_described(config).experts
    assert experts is not None and experts.blocks == tuple(range(3, 48, 2))
    with pytest.raises(CheckpointError, match="num_experts"):
        read_described({**config, "num_experts": None})
    with pytest.raises(UnsupportedError, match="rwkv"):
        read_described({"model_type": "rwkv"})
    assert similar("qwen2.5-05b")[0] == "Qwen/Qwen2.5-0.5B"
