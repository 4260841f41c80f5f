"""A matrix outside the engine: equal to what the codec decodes, updates of adapters included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pliant.adapters import Factors
from pliant.bits import EncodedMatrix, UniformCodec
from pliant.errors import UsageError
from pliant.runtime.low_rank import decode_factors, encode_factors
from pliant.runtime.plane_product import PlaneProduct
from pliant.spec import ModelSpec

SPEC = ModelSpec(
    architecture="llama", vocab_size=131, hidden_size=40, num_blocks=1, num_heads=6, num_groups=3,
    head_dim=12, ffn_size=150, max_context=64, attention_scale=12**-0.5,
)  # fmt: skip
KEPT = (33, 100)
DRAW = np.random.default_rng(0)
X_TI = DRAW.normal(0, 1, (5, KEPT[1])).astype(np.float32)


@pytest.fixture(scope="module")
def source(memory_artifact: Callable[..., Any]) -> Any:
    return memory_artifact(SPEC)


def decoded(source: Any, name: str, planes: int, kept: tuple[int, int]) -> Any:
    rows, columns = source.spec.tensors()[name]
    encoded = EncodedMatrix(rows, columns, source.planes(name), source.scales(name))
    return UniformCodec().decode(encoded, planes, *kept)


@pytest.mark.parametrize("planes", [1, 3, 8])
@pytest.mark.parametrize("activations", ["float32", "int8"])
def test_the_product_is_that_of_the_decoded_prefix(planes, activations, source):
    product = PlaneProduct(
        source, "blocks.0.down", KEPT, planes, activations=activations, threads=1
    )
    weight_OI = decoded(source, "blocks.0.down", planes, KEPT)
    exact = X_TI @ weight_OI.T
    # Half a step of 1/127 of the largest activation, in each of the columns.
    step = 0.0 if activations == "float32" else np.abs(X_TI).max() / 254
    bound = step * np.abs(weight_OI).sum(axis=1) + 1e-4
    assert (np.abs(product(X_TI) - exact) <= bound).all()
    assert product(X_TI[:0]).shape == (0, KEPT[0])


def test_rows_are_those_of_the_matrix(source):
    product = PlaneProduct(source, "embedding", (131, 40), 5, threads=1)
    ids = np.array([7, 130, 7, 0])
    expected = decoded(source, "embedding", 5, (131, 40))[ids]
    np.testing.assert_allclose(product.rows(ids), expected, rtol=0, atol=1e-6)
    with pytest.raises(UsageError, match="rows 0 to 130"):
        product.rows(np.array([131]))


def test_an_update_is_added_as_the_engine_rounds_it(source):
    factors = Factors(
        DRAW.normal(0, 0.1, (4, KEPT[1])).astype(np.float32),
        DRAW.normal(0, 0.3, (KEPT[0], 4)).astype(np.float32),
    )
    plain = PlaneProduct(source, "blocks.0.down", KEPT, 4, activations="float32", threads=1)
    adapted = PlaneProduct(
        source, "blocks.0.down", KEPT, 4, activations="float32", threads=1, update=factors
    )
    a_RI, b_OR = decode_factors(encode_factors(factors))
    expected = plain(X_TI) + X_TI @ (b_OR @ a_RI).T
    np.testing.assert_allclose(adapted(X_TI), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"planes": 9}, "8 are stored"), ({"kept": (41, 100)}, r"\[40, 150\] are stored"),
     ({"kept": (0, 100)}, "are stored"), ({"activations": "int4"}, "int8 or float32")],
)  # fmt: skip
def test_what_cannot_be_asked_for(changes, words, source):
    options = {"kept": KEPT, "planes": 4, "threads": 1, **changes}
    with pytest.raises(UsageError, match=words):
        PlaneProduct(source, "blocks.0.down", **options)


def test_activations_of_another_width_are_refused(source):
    product = PlaneProduct(source, "blocks.0.down", KEPT, 4, threads=1)
    with pytest.raises(UsageError, match="takes rows of 100"):
        product(X_TI[:, :99])
