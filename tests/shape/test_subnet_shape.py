"""Shapes: bounds, rounding, and what is refused."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from pliant.errors import UsageError
from pliant.shape import SubnetShape
from pliant.spec import ModelSpec


def make_spec(**changes: object) -> ModelSpec:
    numbers = {
        "architecture": "llama", "vocab_size": 97, "hidden_size": 48, "num_blocks": 5,
        "num_heads": 6, "num_groups": 3, "head_dim": 10, "ffn_size": 172, "max_context": 64,
        "attention_scale": 10**-0.5,
    }  # fmt: skip
    return ModelSpec(**{**numbers, **changes})


def test_full_keeps_everything_even_where_the_alignment_does_not_divide() -> None:
    spec = make_spec()
    full = SubnetShape.full(spec)
    assert SubnetShape.uniform(spec, tuple(range(5)), 1.0) == full
    assert full.neurons == (172,) * 5
    assert full.is_uniform


@pytest.mark.parametrize(
    ("width", "groups", "neurons"),
    [(0.99, 3, 172), (0.75, 2, 128), (0.5, 2, 64), (0.25, 1, 64), (0.01, 1, 64)],
)
def test_widths_round_to_whole_groups_and_multiples_of_the_alignment(
    width: float, groups: int, neurons: int
) -> None:
    shape = SubnetShape.uniform(make_spec(), (0, 4), width)
    assert shape.groups == (groups,) * 2
    assert shape.neurons == (neurons,) * 2


def test_rounded_widths_never_grow_when_the_ratio_falls() -> None:
    for num_groups in (1, 2, 3, 5, 8):
        spec = make_spec(num_heads=num_groups * 2, num_groups=num_groups, ffn_size=353)
        shapes = [SubnetShape.uniform(spec, (0,), width / 100) for width in range(100, 0, -1)]
        pairs = [(shape.groups[0], shape.neurons[0]) for shape in shapes]
        assert all(
            later[0] <= earlier[0] and later[1] <= earlier[1]
            for earlier, later in itertools.pairwise(pairs)
        )


@pytest.mark.parametrize("width", [0, -0.5, 1.01])
def test_widths_outside_the_ratio_are_refused(width: float) -> None:
    with pytest.raises(UsageError, match="ratio"):
        SubnetShape.uniform(make_spec(), (0,), width)


@pytest.mark.parametrize(
    "fields",
    [
        {"blocks": (), "groups": (), "neurons": ()},
        {"blocks": (1, 0), "groups": (1, 1), "neurons": (64, 64)},
        {"blocks": (0, 0), "groups": (1, 1), "neurons": (64, 64)},
        {"blocks": (-1,), "groups": (1,), "neurons": (64,)},
        {"blocks": (0,), "groups": (1, 1), "neurons": (64,)},
        {"blocks": (0,), "groups": (0,), "neurons": (0,)},
        {"blocks": (0, 1), "groups": (1, 0), "neurons": (64, 0)},
        {"blocks": (0,), "groups": (-1,), "neurons": (64,)},
    ],
)
def test_impossible_shapes_are_refused(fields: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(UsageError):
        SubnetShape(**fields)


def test_a_shape_is_checked_against_its_spec() -> None:
    spec = make_spec()
    for shape in (
        SubnetShape((5,), (1,), (64,)),
        SubnetShape((0,), (4,), (64,)),
        SubnetShape((0,), (1,), (173,)),
    ):
        with pytest.raises(UsageError):
            shape.check_against(spec)
    SubnetShape((4,), (3,), (172,)).check_against(spec)


def test_a_shape_is_a_hashable_value_and_survives_json() -> None:
    shape = SubnetShape((0, 2), (3, 1), (172, 64))
    again = msgspec.json.decode(msgspec.json.encode(shape), type=SubnetShape)
    assert again == shape
    assert len({again, shape}) == 1
    assert not shape.is_uniform


def test_halves_of_blocks_are_kept_by_themselves() -> None:
    shape = SubnetShape((0, 2, 3), (3, 0, 3), (172, 172, 0))
    assert (shape.num_halves, shape.has_whole_blocks, shape.is_uniform) == (4, False, False)
    attention_only = SubnetShape((0, 1), (3, 3), (0, 0))
    assert not attention_only.is_uniform
    assert SubnetShape((0, 1), (3, 3), (64, 64)).has_whole_blocks
