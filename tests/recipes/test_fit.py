"""Fitting: what is measured is kept, predictions are learnt, limits hold, large spaces evolve."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pliant.bits.cache import CacheFormat
from pliant.errors import ArtifactError, DoesNotFitError, UsageError
from pliant.evaluate import TextLoss
from pliant.recipes import fit as fit_recipe
from pliant.recipes import study
from pliant.recipes.build import build
from pliant.recipes.build_options import BuildOptions
from pliant.recipes.fit import fit, offer
from pliant.runtime.text_engine import Pliant, open_artifact
from pliant.search import Budget
from pliant.subnet import Subnet

DOCUMENTS = ["A fox lives in the wood and says hello. " * 4]


@pytest.fixture(scope="module")
def finer_artifact(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with cuts of half blocks and ranked widths; do not change its files."""
    output = tmp_path_factory.mktemp("finer") / "finer.pliant"
    options = BuildOptions(windows=4, window_tokens=64, finer="single-drop")
    build(random_checkpoint, output, options=options)
    return output


@pytest.fixture
def model(finer_artifact: Path, tmp_path: Path) -> Iterator[Pliant]:
    folder = tmp_path / "fits.pliant"
    shutil.copytree(finer_artifact, folder)
    with open_artifact(folder) as opened:
        yield opened


def budget_of(model: Pliant, share: float, **limits: float) -> Budget:
    whole = max(candidate.memory_bytes for candidate in offer(model).candidates)
    return Budget(memory_bytes=int(share * whole), **limits)  # type: ignore[arg-type]


def test_nothing_is_measured_twice(model: Pliant, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fit(model, budget_of(model, 0.7), DOCUMENTS, study=12, threads=1)
    assert first.offer.predictor_error is not None
    assert first.saved
    # The study, all planes, three finalists, the dense baseline, mixed bits.
    assert 12 <= first.studied <= 12 + 6
    assert len(list((model.artifact.path / "studies").iterdir())) == 1

    known = set(study.Bench(model, DOCUMENTS).losses)
    measured, text_loss = list[Subnet](), study.text_loss

    def noted(opened: Pliant, subnet: Subnet, *others: Any) -> TextLoss:
        measured.append(subnet)
        return text_loss(opened, subnet, *others)

    monkeypatch.setattr(study, "text_loss", noted)
    again = fit(model, budget_of(model, 0.7), DOCUMENTS, study=12, threads=1)
    assert not known & set(measured)
    assert len(measured) <= 3
    assert again.search.chosen.loss <= first.search.chosen.loss
    # another text is another study
    fit(model, budget_of(model, 0.7), ["Another text."], study=12, threads=1)
    assert known & set(measured)


def test_without_a_study_predictions_are_additive(model: Pliant) -> None:
    found = fit(model, budget_of(model, 0.7), DOCUMENTS, study=0, threads=1)
    assert found.offer == offer(model)
    assert found.offer.predictor_error is None


def test_other_weights_have_another_study(model: Pliant) -> None:
    fit(model, budget_of(model, 0.7), DOCUMENTS, study=9, threads=1)
    (path,) = (model.artifact.path / "studies").iterdir()
    stored = path.read_bytes()
    weights = study.Bench(model, DOCUMENTS).study.weights
    path.write_bytes(stored.replace(weights.encode(), b"0" * len(weights)))
    assert study.Bench(model, DOCUMENTS).losses == {}
    path.write_bytes(stored[:-1])
    with pytest.raises(ArtifactError, match=r"studies/.* is damaged"):
        study.Bench(model, DOCUMENTS)


def test_a_folder_that_cannot_be_written_keeps_nothing(
    model: Pliant, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ArtifactError("read-only")

    monkeypatch.setattr(type(model.artifact), "save_study", refuse)
    found = fit(model, budget_of(model, 0.7), DOCUMENTS, study=9, threads=1)
    assert not found.saved
    assert found.studied >= 9


def test_speed_is_measured_where_it_is_bounded(model: Pliant) -> None:
    easy = budget_of(model, 0.7, min_tokens_per_second=0.001)
    found = fit(model, easy, DOCUMENTS, study=0, threads=1)
    assert all(candidate.seconds_per_token for candidate in found.offer.candidates)
    with pytest.raises(DoesNotFitError, match="token/s here; the fastest is"):
        fit(model, budget_of(model, 0.7, min_tokens_per_second=1e9), DOCUMENTS, study=0, threads=1)


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_a_space_too_large_to_enumerate_evolves(
    model: Pliant, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The evolution's best is the enumeration's on a space that small; and it says what fits."""
    budget = budget_of(model, share)
    whole = budget.fitting(offer(model).candidates)[0]
    monkeypatch.setattr(fit_recipe, "MOST_ENUMERATED", 10)
    evolved = offer(model, budget=budget)
    assert budget.fitting(evolved.candidates)[0].predicted_loss == whole.predicted_loss
    assert {item.subnet for item in offer(model).candidates}
    with pytest.raises(DoesNotFitError, match="the smallest that exists"):
        Budget(memory_bytes=10).fitting(offer(model, budget=Budget(memory_bytes=10)).candidates)


def test_finer_cuts_are_offered_and_run(model: Pliant) -> None:
    """Half blocks and ranked widths are candidates, priced as measured; the engine runs them."""
    manifest = model.artifact.manifest
    assert manifest.half_path is not None and manifest.sensitivities is not None
    halves = sorted(manifest.half_path.losses)
    assert halves[-1] == 2 * model.artifact.spec.num_blocks
    assert manifest.sensitivities.halves == manifest.half_path.losses
    assert set(manifest.sensitivities.ranked_width) == set(manifest.sensitivities.width)
    found = {str(item.address): item for item in offer(model).candidates}
    address = f"h{halves[-2]}-b3"
    candidate = found[address]
    assert candidate.subnet == model.subnet(address)
    assert not candidate.subnet.shape.has_whole_blocks
    assert not candidate.is_dense
    dense = manifest.sensitivities.dense_loss
    expected = manifest.sensitivities.planes[3] + manifest.half_path.losses[halves[-2]] - dense
    default = manifest.sensitivities.vocabulary_planes[4] - dense
    assert candidate.predicted_loss == pytest.approx(expected + default)
    assert any("g0." in name for name in found)
    for name in (address, f"h{halves[0]}-g0.75-b4", "g0.5"):
        with model.engine(name, threads=1) as engine:
            assert len(engine.generate("Once", max_tokens=4).tokens) > 0


def test_methods_of_whole_blocks_search_no_halves() -> None:
    with pytest.raises(UsageError, match="Halves cannot be searched by 'influence'"):
        BuildOptions(finer="influence")


@pytest.fixture(scope="module")
def long_artifact(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model built on windows long enough for codes; do not change its files."""
    output = tmp_path_factory.mktemp("long") / "long.pliant"
    options = BuildOptions(windows=2, window_tokens=192)
    build(random_checkpoint, output, options=options)
    return output


def test_fit_chooses_the_cache(long_artifact: Path, tmp_path: Path) -> None:
    """A build measures what caches cost, and what a budget leaves no room for gets fewer bits."""
    folder = tmp_path / "fits.pliant"
    shutil.copytree(long_artifact, folder)
    with open_artifact(folder) as model:
        measured = model.artifact.manifest.sensitivities
        assert measured is not None
        assert list(measured.cache) == [16, 8, 4, 3, 2]
        assert measured.cache[16] == measured.dense_loss
        losses = list(measured.cache.values())
        assert losses == sorted(losses) and losses[-1] > losses[0]
        context = model.artifact.spec.max_context
        offered = offer(model, context)
        plain = offer(model, context, kv_bits=16)
        assert len(offered.candidates) < 3 * len(plain.candidates)
        least = min(item.memory_bytes for item in plain.candidates) - 1
        found = fit(model, Budget(memory_bytes=least), DOCUMENTS, context=context, study=0,
                    verify=1, threads=1)  # fmt: skip
        chosen = found.search.chosen.candidate
        assert chosen.subnet.bits.cache.bits < 16
        assert offered.memory_bytes(chosen.subnet) <= least
        with pytest.raises(DoesNotFitError):
            fit(model, Budget(memory_bytes=least), DOCUMENTS, context=context, kv_bits=16)
        kept = study.Bench(model, DOCUMENTS).losses
        assert chosen.subnet in kept and chosen.subnet.with_cache(16) not in kept


def test_a_fixed_cache_is_not_chosen(long_artifact: Path) -> None:
    with open_artifact(long_artifact) as model:
        fixed = offer(model, 256, kv_bits=3, kv_window=0)
        assert {item.subnet.bits.cache for item in fixed.candidates} == {
            CacheFormat(bits=3, window=0)
        }
        learnt = offer(model, 256).predicted_by(ShapeOnly())  # type: ignore[arg-type]
        assert {item.subnet.bits.cache.bits for item in learnt.candidates} == {16, 8, 4, 3, 2}
        assert len({item.subnet for item in learnt.candidates}) == len(learnt.candidates)


class ShapeOnly:
    """A predictor for which the bytes of weights are all that counts."""

    error = 0.0

    def predict(self, subnets: Sequence[Subnet]) -> Any:
        return np.array([1 + 1e6 / subnet.weight_bytes for subnet in subnets])
