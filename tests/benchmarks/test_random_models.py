"""Random artifacts are whole ones: they verify, run, and come from the cache the second time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pliant.artifact import verify
from pliant.runtime import Chunk
from pliant.runtime.engine import Engine


def test_a_random_artifact_is_valid_and_runs(tmp_path: Path) -> None:
    import random_models

    config = random_models.llama_config(96, 64, 2, 4, 2, 160, tied=False, context=64)
    artifact = random_models.random_artifact("tiny", config, planes=3, cache=tmp_path)
    verify(artifact.path)
    assert artifact.num_planes == 3
    with Engine(artifact, artifact.subnet("b2-e3"), threads=1) as engine:
        cache = engine.new_cache(8)
        logits = engine.forward_chunk([Chunk(np.arange(8, dtype=np.int32), cache)])[0]
    assert np.isfinite(logits).all()
    assert 0.01 < float(np.abs(logits).max()) < 100
    before = (artifact.path / "pliant.json").stat().st_mtime_ns
    again = random_models.random_artifact("tiny", config, planes=3, cache=tmp_path)
    assert again.path == artifact.path
    assert (again.path / "pliant.json").stat().st_mtime_ns == before


def test_another_config_is_another_file(tmp_path: Path) -> None:
    import random_models

    paths = {
        random_models.random_artifact(
            "tiny", random_models.llama_config(32, 64, 1, 2, 2, ffn), planes=1, cache=tmp_path
        ).path
        for ffn in (64, 96)
    }
    assert len(paths) == 2


def test_sizes_that_do_not_fill_chunks_are_refused() -> None:
    import random_models

    with pytest.raises(ValueError, match="multiples of 32"):
        random_models.random_matrix(random_models._RandomBytes(0), 33, 64, 1)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("15M", 15.2), ("Qwen2.5-0.5B", 494.0), ("TinyLlama-1.1B", 1100.0),
     ("Llama-3.2-1B", 1235.8)],
)  # fmt: skip
def test_shapes_have_the_parameters_of_the_models_they_are_named_for(
    name: str, millions: float
) -> None:
    import random_models
    from pliant.subnet import Subnet

    count = Subnet.full(random_models.full_spec(name)).num_parameters
    assert count / 1e6 == pytest.approx(millions, rel=2e-3)
