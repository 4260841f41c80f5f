"""The operator graph counts what the supernet computes and what the artifact holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pliant.bits import BitPlan
from pliant.costs import Experts, Step, Widths, decode_traffic, prefill_steps, step_graph, total
from pliant.errors import UsageError
from pliant.shape import SubnetShape
from pliant.spec import ModelSpec
from pliant.subnet import Subnet


def operations(subnet: Subnet, step: Step, *kinds: str, experts: Experts | None = None) -> int:
    graph = step_graph(subnet, step, experts=experts)
    return total([item for item in graph.operators if item.kind in kinds], "operations")


@pytest.mark.parametrize("head_dim", [16, 24])
@pytest.mark.parametrize("window", [0, 5])
def test_products_and_attention_equal_counts_of_the_supernet(
    tiny: ModelSpec, head_dim: int, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Integer for integer: every linear map, and attention over the entries its mask shows."""
    torch = pytest.importorskip("torch")
    from pliant.models import attention, supernet

    spec = msgspec.structs.replace(
        tiny, head_dim=head_dim, block_windows=(window, 0, window, 0), logit_softcap=9.0
    )
    shape = SubnetShape((0, 1, 3), (2, 1, 2), (176, 64, 128))
    counted = {"products": 0, "attention": 0, "shown": 0}
    linear, attend = supernet.functional.linear, supernet.attend

    def count_linear(x: Any, weight: Any, bias: Any = None) -> Any:
        counted["products"] += 2 * x[..., 0].numel() * weight.numel()
        return linear(x, weight, bias)

    def count_attend(query: Any, key: Any, value: Any, scale: float, cap: float, seen: int) -> Any:
        mask = attention.visible(query.shape[2], key.shape[2], seen, query.device)
        counted["attention"] += 2 * 2 * query.shape[1] * query.shape[3] * int(mask.sum())
        return attend(query, key, value, scale, cap, seen)

    monkeypatch.setattr(supernet.functional, "linear", count_linear)
    monkeypatch.setattr(supernet, "attend", count_attend)
    model = supernet.Supernet.initialized(spec, seed=0)
    cache = attention.KeyValueCache()
    with torch.no_grad():
        model(torch.zeros(1, 11, dtype=torch.int64), shape, cache)
        model(torch.zeros(1, 1, dtype=torch.int64), shape, cache)
    subnet = Subnet(spec, shape, BitPlan.uniform(3, 4))
    steps = [Step(tokens=11, logits=11), Step.decode(11)]
    assert sum(operations(subnet, step, "product") for step in steps) == counted["products"]
    kept = sum(groups * spec.heads_per_group for groups in shape.groups) * spec.head_dim
    finished = 12 * kept  # one division for each number that attention puts out
    attended = sum(operations(subnet, step, "scores", "mix") for step in steps)
    assert attended - finished == counted["attention"]


@given(st.data())
@settings(max_examples=20, deadline=None)
def test_weights_and_cache_are_those_of_the_subnet(
    subnets: Callable[[], st.SearchStrategy[Subnet]], data: st.DataObject
) -> None:
    """One decoded token reads every stored byte once, the embedding's own row apart."""
    subnet, context = data.draw(subnets()), data.draw(st.integers(0, 40))
    graph = step_graph(subnet, Step.decode(context))
    row = next(item for item in graph.operators if item.name == "embedding").weight_bytes
    tables = {cut.name: cut.num_bytes for cut in subnet.matrices()}
    head_and_row = row if subnet.spec.tied_embeddings else row - tables["embedding"]
    assert graph.weight_bytes == subnet.weight_bytes + head_and_row
    entry = subnet.cache_bytes(1)
    windows = [subnet.spec.block_windows[block] for block in subnet.shape.blocks]
    if not any(windows):
        assert graph.cache_bytes == entry * (context + 1)
        assert decode_traffic(subnet, context).cache_bytes == graph.cache_bytes
    assert total(graph.operators, "cache_write_bytes") == entry


@given(st.data())
@settings(max_examples=20, deadline=None)
def test_chunks_do_the_work_of_one_prompt(
    subnets: Callable[[], st.SearchStrategy[Subnet]], data: st.DataObject
) -> None:
    subnet = data.draw(subnets())
    tokens, chunk = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 60))
    whole = step_graph(subnet, Step(tokens=tokens))
    parts = [step_graph(subnet, step) for step in prefill_steps(tokens, chunk)]
    assert sum(part.operations for part in parts) == whole.operations
    assert sum(part.weight_bytes for part in parts) >= whole.weight_bytes


@given(st.data(), st.sampled_from(["planes", "tokens", "cached", "sequences", "depth"]))
@settings(max_examples=20, deadline=None)
def test_more_of_anything_costs_no_less(
    subnets: Callable[[], st.SearchStrategy[Subnet]], data: st.DataObject, grown: str
) -> None:
    subnet = data.draw(subnets())
    step = Step(tokens=data.draw(st.integers(1, 9)), cached=data.draw(st.integers(0, 9)))
    larger, later = subnet, step
    if grown in ("tokens", "cached", "sequences"):
        later = msgspec.structs.replace(step, **{grown: getattr(step, grown) + 1})
    else:
        blocks = subnet.shape.blocks
        if grown == "depth" and len(blocks) < subnet.spec.num_blocks:
            blocks = (*blocks, len(blocks))
        planes = subnet.bits.blocks[0].q
        planes = min(8, planes + (grown == "planes"))
        groups, neurons = subnet.shape.groups[0], subnet.shape.neurons[0]
        count = len(blocks)
        shape = SubnetShape(blocks, (groups,) * count, (neurons,) * count)
        larger = Subnet(subnet.spec, shape, BitPlan.uniform(count, planes))
    small, large = step_graph(subnet, step), step_graph(larger, later)
    assert large.operations >= small.operations
    assert large.memory_bytes >= small.memory_bytes
    assert large.activation_peak_bytes >= small.activation_peak_bytes


def test_four_widths_are_apart(tiny: ModelSpec) -> None:
    """Halving one width halves its own bytes and no others."""
    subnet, step = Subnet.full(tiny), Step(tokens=3, cached=8)
    wide, half = Widths.of_cache(32), Widths.of_cache(16)
    first, second = step_graph(subnet, step, wide), step_graph(subnet, step, half)
    assert first.cache_bytes == 2 * second.cache_bytes
    assert first.weight_bytes == second.weight_bytes
    narrow = step_graph(subnet, step, Widths(activation_bytes=2, arithmetic="fp16"))
    assert narrow.weight_bytes == first.weight_bytes
    assert narrow.activation_peak_bytes < first.activation_peak_bytes
    assert not any(item.kind == "quantize" for item in narrow.operators)
    with pytest.raises(UsageError, match="were asked for"):
        Widths(activation_bytes=3)


def test_liveness_of_a_block_by_hand() -> None:
    """One token: at its widest gate, up and the residual are alive, with the codes of the norm."""
    spec = ModelSpec(
        architecture="llama", vocab_size=2, hidden_size=64, num_blocks=1, num_heads=1,
        num_groups=1, head_dim=64, ffn_size=640, max_context=8, attention_scale=1.0,
    )  # fmt: skip
    graph = step_graph(Subnet.full(spec), Step.decode(0))
    assert graph.activation_peak_bytes == 4 * (64 + 640 + 640) + (64 + 8)


def test_a_mixture_reads_the_experts_its_tokens_choose(tiny: ModelSpec) -> None:
    experts = Experts(count=4, active=2, blocks=(0, 1, 2, 3))
    subnet = Subnet.full(tiny)
    dense = operations(subnet, Step(), "product")
    mixed = operations(subnet, Step(), "product", experts=experts)
    expert = 3 * 2 * tiny.ffn_size * tiny.hidden_size
    router = 2 * experts.count * tiny.hidden_size
    assert mixed - dense == tiny.num_blocks * (expert + router)
    bytes_of = {
        count: step_graph(subnet, Step.decode(1, count), experts=experts).weight_bytes
        for count in (1, 2, 64)
    }
    one = step_graph(subnet, Step.decode(1)).weight_bytes
    assert one < bytes_of[1] < bytes_of[2] < bytes_of[64]
    assert experts.distinct(1) == pytest.approx(2)
    assert experts.distinct(2) == pytest.approx(3)
    assert experts.distinct(100) == pytest.approx(4)
    with pytest.raises(UsageError, match="experts"):
        Experts(count=2, active=3, blocks=())


def test_shared_experts_and_dense_blocks(tiny: ModelSpec) -> None:
    subnet = Subnet.full(tiny)
    plain = Experts(count=4, active=1, blocks=(1, 3), dense_neurons=352)
    shared = msgspec.structs.replace(plain, shared_neurons=64)
    more = operations(subnet, Step(), "product", experts=shared)
    extra = more - operations(subnet, Step(), "product", experts=plain)
    assert extra == 2 * 3 * 2 * 64 * tiny.hidden_size
    graph = step_graph(subnet, Step(), experts=plain)
    assert {item.rows for item in graph.operators if item.name == "gate"} == {176, 384}
