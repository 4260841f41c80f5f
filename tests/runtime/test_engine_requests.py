"""What cannot be run is refused with a sentence, and leaves caches as they were."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pliant import _native
from pliant.bits import BitPlan
from pliant.errors import GenerationError, UsageError
from pliant.runtime import Chunk, Engine
from pliant.shape import SubnetShape
from pliant.spec import ModelSpec
from pliant.subnet import Subnet

EngineMaker = Callable[..., Engine]


class TestChunk:
    def test_integers_of_any_kind_are_taken(self) -> None:
        for tokens in ([1, 2], (1, 2), np.array([1, 2], np.int64), np.array([1, 9, 2])[::2]):
            assert Chunk(tokens, None).tokens.dtype == np.int32

    @pytest.mark.parametrize("tokens", [[0.5], [[1]], ["a"], 3, [True]])
    def test_other_tokens(self, tokens: Any) -> None:
        with pytest.raises(UsageError, match="one row of integers"):
            Chunk(tokens, None)

    def test_ids_beyond_32_bits(self) -> None:
        with pytest.raises(GenerationError, match="32-bit"):
            Chunk(np.array([1 << 40]), None)

    @pytest.mark.parametrize("mask", [np.ones((2, 3), bool), np.ones((2, 2)), [True]])
    def test_masks(self, mask: Any) -> None:
        with pytest.raises(UsageError, match=r"bool\[2, 2\]"):
            Chunk([1, 2], None, mask=mask)

    def test_logits(self) -> None:
        with pytest.raises(UsageError, match="last, all or none"):
            Chunk([1], None, logits="first")


class TestRequest:
    @pytest.fixture
    def engine(self, make_engine: EngineMaker) -> Engine:
        return make_engine({"threads": 2})

    def test_empty_batch(self, engine: Engine) -> None:
        with pytest.raises(UsageError, match="batch is empty"):
            engine.forward_chunk([])

    def test_no_tokens(self, engine: Engine) -> None:
        for logits in ("all", "last", "none"):
            with pytest.raises(UsageError, match="no tokens"):
                engine.forward_chunk([Chunk([], engine.new_cache(4), logits=logits)])

    @pytest.mark.parametrize("token", [-1, 131, 2**31 - 1, -(2**31)])
    def test_tokens_outside_the_vocabulary(self, engine: Engine, token: int) -> None:
        cache = engine.new_cache(4)
        with pytest.raises(GenerationError, match=f"token {token}; this vocabulary ends at 130"):
            engine.forward_chunk([Chunk([1, token], cache)])
        assert cache.length == 0

    def test_a_full_cache(self, engine: Engine) -> None:
        cache = engine.new_cache(4)
        engine.forward_chunk([Chunk([1, 2, 3], cache)])
        with pytest.raises(GenerationError, match="2 tokens and its cache has room for 1 of 4"):
            engine.forward_chunk([Chunk([1, 2], cache)])
        assert cache.length == 3

    def test_beyond_the_context(self, engine: Engine) -> None:
        cache = engine.new_cache(600)
        engine.forward_chunk([Chunk([1], cache, np.array([599]))])
        with pytest.raises(GenerationError, match="reach position 600; this model reads 600"):
            engine.forward_chunk([Chunk([1], cache)])
        for position in (-1, 600):
            with pytest.raises(GenerationError, match=f"position {position}"):
                chunk = Chunk([1], engine.new_cache(2), np.array([position]))
                engine.forward_chunk([chunk])

    def test_positions_of_another_length(self, engine: Engine) -> None:
        with pytest.raises(UsageError, match="1 positions were given for 2 tokens"):
            engine.forward_chunk([Chunk([1, 2], engine.new_cache(4), np.array([0]))])

    @pytest.mark.parametrize("mask", [[[1, 1], [1, 1]], [[1, 0], [1, 0]], [[0, 0], [1, 1]]])
    def test_masks_that_look_ahead_or_away(self, engine: Engine, mask: Any) -> None:
        chunk = Chunk([1, 2], engine.new_cache(4), mask=np.array(mask, bool))
        with pytest.raises(UsageError, match="parents before children"):
            engine.forward_chunk([chunk])

    def test_one_cache_twice(self, engine: Engine) -> None:
        cache = engine.new_cache(4)
        with pytest.raises(UsageError, match="share one cache"):
            engine.forward_chunk([Chunk([1], cache), Chunk([2], cache)])

    def test_a_cache_of_another_engine(self, engine: Engine, make_engine: EngineMaker) -> None:
        with pytest.raises(UsageError, match="another engine"):
            engine.forward_chunk([Chunk([1], make_engine().new_cache(4))])
        for nothing in (None, "cache", 3):
            with pytest.raises(UsageError, match="is no cache"):
                engine.forward_chunk([Chunk([1], nothing)])

    def test_a_bad_chunk_spoils_nothing(self, engine: Engine) -> None:
        good = engine.new_cache(4)
        with pytest.raises(GenerationError):
            engine.forward_chunk([Chunk([1], good), Chunk([999], engine.new_cache(4))])
        assert good.length == 0

    def test_a_closed_engine(self, engine: Engine) -> None:
        cache = engine.new_cache(4)
        engine.close()
        engine.close()
        with pytest.raises(UsageError, match="closed"):
            engine.forward_chunk([Chunk([1], cache)])
        with pytest.raises(UsageError, match="closed"):
            engine.new_cache(4)
        with pytest.raises(UsageError, match="closed"):
            engine.memory()

    def test_interrupting_a_long_prompt(self, engine: Engine) -> None:
        """Ctrl-C is heard between steps, and the cache is then as before or as after."""
        cache, tokens = engine.new_cache(600), np.zeros(600, np.int32)
        main = threading.main_thread().ident
        assert main is not None
        threading.Timer(0.05, lambda: signal.pthread_kill(main, signal.SIGINT)).start()
        deadline = time.monotonic() + 30
        with pytest.raises(KeyboardInterrupt):
            while time.monotonic() < deadline:
                engine.forward_chunk([Chunk(tokens, cache, logits="none")])
                cache.truncate(0)
        assert cache.length in (0, 600)

    def test_several_python_threads(self, engine: Engine) -> None:
        expected = engine.forward_chunk([Chunk([1, 2, 3], engine.new_cache(3))])[0]
        results: list[Any] = []

        def work() -> None:
            for _ in range(10):
                results.extend(engine.forward_chunk([Chunk([1, 2, 3], engine.new_cache(3))]))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == 40
        assert all(np.array_equal(result, expected) for result in results)


class TestOptions:
    @pytest.mark.parametrize("threads", [0, -1, 257, 10_000])
    def test_threads(self, make_engine: EngineMaker, threads: int) -> None:
        with pytest.raises(UsageError, match=f"{threads} threads"):
            make_engine({"threads": threads})

    def test_a_kernel_path_that_is_not_here(
        self, make_engine: EngineMaker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PLIANT_ISA", "abacus")
        with pytest.raises(UsageError, match=r"PLIANT_ISA=abacus .*scalar\)"):
            make_engine()
        monkeypatch.setenv("PLIANT_ISA", "scalar")
        engine = make_engine()
        monkeypatch.delenv("PLIANT_ISA")
        assert engine.kernels == "scalar"

    def test_default_threads_are_cores(self, make_engine: EngineMaker) -> None:
        assert 1 <= make_engine().threads <= _native.MAX_THREADS

    @pytest.mark.parametrize("option", [{"activations": "int4"}, {"cache_type": "int5"}])
    def test_types(self, make_engine: EngineMaker, option: dict[str, str]) -> None:
        with pytest.raises(UsageError, match=r"(were|was) asked for"):
            make_engine(option)

    def test_more_planes_than_stored(self, memory_artifact: Any) -> None:
        spec = ModelSpec(
            architecture="llama", vocab_size=5, hidden_size=8, num_blocks=1, num_heads=1,
            num_groups=1, head_dim=4, ffn_size=9, max_context=8, attention_scale=0.5,
        )  # fmt: skip
        artifact = memory_artifact(spec)

        class Three:
            spec = artifact.spec
            scales, vector = artifact.scales, artifact.vector

            def planes(self, name: str) -> Any:
                return artifact.planes(name)[:3]

        Engine(Three(), Subnet(spec, SubnetShape.full(spec), BitPlan.uniform(1, 3, 3)))
        with pytest.raises(UsageError, match=r"4 planes of .* the artifact stores 3"):
            Engine(Three(), Subnet.full(spec, 4))


class TestNonFinite:
    @pytest.mark.parametrize(
        ("vector", "message"),
        [
            ("blocks.1.attention_norm", "Block 1, operation q"),
            ("blocks.0.mlp_norm", "Block 0, operation gated MLP"),
            ("final_norm", "logits"),
        ],
    )
    def test_first_nan_is_named(self, memory_artifact: Any, vector: str, message: str) -> None:
        spec = ModelSpec(
            architecture="llama", vocab_size=50, hidden_size=33, num_blocks=2, num_heads=2,
            num_groups=1, head_dim=8, ffn_size=40, max_context=8, attention_scale=0.3,
        )  # fmt: skip
        artifact = memory_artifact(spec)

        class Damaged:
            spec = artifact.spec
            planes, scales = artifact.planes, artifact.scales

            def vector(self, name: str) -> Any:
                array = artifact.vector(name).copy()
                array[3] = np.nan if name == vector else array[3]
                return array

        for activations in ("int8", "float32"):
            engine = Engine(Damaged(), Subnet.full(spec), 2, activations, check_finite=True)
            cache = engine.new_cache(8)
            with pytest.raises(GenerationError, match=message):
                engine.forward_chunk([Chunk([1, 2], cache)])
            assert cache.length == 0


class TestPlaneMatrix:
    """The binding itself checks sizes: a wrong array never reaches a kernel."""

    def make(self, **changes: Any) -> _native.PlaneMatrix:
        fields = {
            "planes": [np.zeros(3 * 2 * 128, np.uint8)] * 2, "scales": np.zeros(96, np.uint16),
            "rows": 70, "columns": 40, "stored_rows": 70, "stored_columns": 40,
        }  # fmt: skip
        return _native.PlaneMatrix(**{**fields, **changes})

    def test_the_right_sizes(self) -> None:
        matrix = self.make(rows=1, columns=40)
        assert (matrix.rows, matrix.columns, matrix.num_planes) == (1, 40, 2)

    @pytest.mark.parametrize(
        "changes",
        [
            {"planes": []},
            {"planes": [np.zeros(768, np.uint8)] * 9},
            {"planes": [np.zeros(768, np.uint8), np.zeros(767, np.uint8)]},
            {"scales": np.zeros(95, np.uint16)},
            {"rows": 71}, {"columns": 41}, {"rows": 0}, {"columns": -1},
            {"rows": 97, "stored_rows": 97}, {"columns": 65, "stored_columns": 65},
            {"scales": np.zeros(193, np.uint8)[1:].view(np.uint16)},
        ],
    )  # fmt: skip
    def test_wrong_sizes(self, changes: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=r"\w+ .*\."):
            self.make(**changes)

    @pytest.mark.parametrize(
        "changes",
        [
            {"planes": [np.zeros(768, np.int32)]}, {"planes": [np.zeros((2, 768), np.uint8)]},
            {"planes": [np.zeros(1536, np.uint8)[::2]]}, {"scales": np.zeros(96, np.float32)},
            {"rows": 2**40}, {"planes": None},
        ],
    )  # fmt: skip
    def test_wrong_types(self, changes: dict[str, Any]) -> None:
        with pytest.raises(TypeError):
            self.make(**changes)
