"""The demo recipe on a tiny model: it learns, resumes bit by bit, stops politely, exports."""

from __future__ import annotations

import json
import lzma
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch

from pliant.errors import DataError, InterruptedJobError, UsageError
from pliant.models import Checkpoint, Supernet
from pliant.recipes.train_demo import DemoConfig, DemoShape, Stage, train_demo
from pliant.recipes.train_demo.corpus import DemoCorpus, prepare_corpus
from pliant.recipes.train_demo.trainer import Trainer, rate_factor, window_loss
from pliant.tune import StopRequest
from pliant.tune.optimizer import orthogonalized

SHAPE = DemoShape(num_blocks=2, hidden_size=32, num_heads=4, num_groups=2, head_dim=8,
                  ffn_size=64, vocab_size=288, context=32)  # fmt: skip
WORDS = ["the", "a", "little", "old", "king", "queen", "cat", "went", "told", "and", "house"]


def story(seed: int, num_words: int) -> str:
    random = np.random.default_rng(seed)
    text = " ".join(WORDS[i] for i in random.integers(len(WORDS), size=num_words))
    return f"{text}.\n\n12 {text}\n<|endoftext|>\n{text}"


@pytest.fixture(scope="module")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "children_train.txt.xz").write_bytes(lzma.compress(story(0, 1500).encode()))
    (folder / "pd_train.txt.xz").write_bytes(lzma.compress(story(1, 2500).encode()))
    (folder / "children_valid.txt").write_text(story(2, 300))
    return folder


@pytest.fixture
def config(corpus_folder: Path, tmp_path: Path) -> DemoConfig:
    return DemoConfig(
        corpus=corpus_folder,
        output=tmp_path / "tiny",
        state=tmp_path / "state",
        shape=SHAPE,
        tokens=10 * 256,
        stages=(Stage(0.5, 16), Stage(1.0, 32)),
        batch_tokens=256,
        micro_tokens=64,
        warmup_steps=2,
        processes=1,
        log_steps=5,
        heldout_windows=4,
    )


@pytest.fixture
def corpus(config: DemoConfig) -> DemoCorpus:
    return prepare_corpus(config)


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in trainer.model.weights.items()}


def stop_after(step: int, stop: StopRequest):
    def report(stage: str, done: int, total: int) -> None:
        stop.requested = done >= step

    return report


def test_training_lowers_the_heldout_loss(config: DemoConfig, corpus: DemoCorpus) -> None:
    trainer = Trainer(replace(config, tokens=40 * 256), corpus)
    before = trainer.heldout_bits_per_byte()
    trainer.run(StopRequest())
    assert trainer.heldout_bits_per_byte() < 0.8 * before


def test_a_resumed_run_ends_in_the_same_bits(config: DemoConfig, corpus: DemoCorpus) -> None:
    straight = Trainer(config, corpus)
    straight.run(StopRequest())
    elsewhere = replace(config, state=config.state / "resumed")
    elsewhere.state.mkdir()
    first, stop = Trainer(elsewhere, corpus), StopRequest()
    first.run(stop, stop_after(4, stop))
    assert 4 <= first.progress.step < config.num_steps
    second = Trainer(elsewhere, corpus)
    assert second.progress.step == first.progress.step
    second.run(StopRequest())
    assert second.progress.tokens == straight.progress.tokens == config.tokens
    for name, weight in weights_of(straight).items():
        assert torch.equal(weight, second.model.weights[name]), name


def test_two_processes_take_the_steps_of_one(config: DemoConfig, corpus: DemoCorpus) -> None:
    alone = Trainer(config, corpus)
    alone.run(StopRequest())
    both = replace(config, processes=2, state=config.state / "both")
    train_demo(both)
    shared = Trainer(both, corpus)
    for name, weight in weights_of(alone).items():
        # The same sums in another order, through ten steps.
        torch.testing.assert_close(weight, shared.model.weights[name], rtol=1e-3, atol=1e-4)


def test_the_checkpoint_is_the_trained_model(config: DemoConfig) -> None:
    folder = train_demo(config)
    loaded = Supernet.from_checkpoint(Checkpoint.open(folder))
    trained = Trainer(config, prepare_corpus(config))
    for name, weight in weights_of(trained).items():
        assert torch.equal(weight.to(torch.bfloat16).float(), loaded.weights[name]), name
    windows = torch.from_numpy(trained.corpus.heldout_windows(17, 4))
    exact, rounded = (window_loss(model, windows).item() for model in (trained.model, loaded))
    assert rounded == pytest.approx(exact, abs=0.02)
    log = [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in log] == [5, 10]
    assert "heldout_bits_per_byte" in log[-1]


def test_any_text_survives_the_tokenizer(config: DemoConfig, corpus: DemoCorpus) -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(corpus.tokenizer))
    for text in ["", " ", "  two\n\n\t x", "äöü \U0001f642 12345 \x00\r\n", "<|endoftext|>\n"]:
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert len(tokenizer.encode("2024").ids) == 4
    assert tokenizer.token_to_id("<|endoftext|>") == 0


def test_stopping_is_an_error_that_invites_to_go_on(
    config: DemoConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, stop = Trainer(config, prepare_corpus(config)), StopRequest()
    trainer.run(stop, stop_after(1, stop))
    shorter = replace(config, tokens=256)
    assert train_demo(shorter) == config.output
    monkeypatch.setattr(Trainer, "run", lambda *_: None)
    with pytest.raises(InterruptedJobError, match="goes on from there"):
        train_demo(config)


def test_state_of_other_settings_is_refused(config: DemoConfig, corpus: DemoCorpus) -> None:
    trainer, stop = Trainer(config, corpus), StopRequest()
    trainer.run(stop, stop_after(1, stop))
    with pytest.raises(UsageError, match="other settings"):
        Trainer(replace(config, matrix_rate=0.5), corpus)


def test_a_missing_corpus_is_named(config: DemoConfig, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"children_train\.txt\.xz.*--corpus"):
        prepare_corpus(replace(config, corpus=tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": (Stage(0.5, 16),)}, "up to 1.0"),
        ({"stages": (Stage(1.0, 64),)}, "the context is 32"),
        ({"batch_tokens": 100}, "do not divide"),
        ({"children_share": 1.5}, "0 .. 1"),
    ],
)
def test_impossible_settings_are_refused(
    config: DemoConfig, change: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        replace(config, **change)


def test_orthogonalized_matrices_have_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for rows, columns in [(16, 16), (48, 16), (16, 40)]:
        values = torch.linalg.svdvals(orthogonalized(torch.randn(3, rows, columns)))
        # The quintic trades exactness for speed: Jordan et al. state about 0.7 to 1.2.
        assert values.min() > 0.3
        assert values.max() < 1.3


def test_the_rate_rises_then_falls(config: DemoConfig) -> None:
    rates = [rate_factor(step, config) for step in range(config.num_steps + 1)]
    assert rates[0] == pytest.approx(0.5)
    assert max(rates) == rates[1]
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert rates[-1] == pytest.approx(config.final_rate)


def test_the_default_shape_has_the_size_in_its_name() -> None:
    assert DemoShape().num_parameters == 746_880
    config = DemoConfig()
    assert config.num_steps * config.batch_tokens >= 100 * 746_880
