"""The model class: what lm-eval asks of it, answered by our engine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pliant
from pliant.errors import UsageError
from pliant.evaluate import evaluate_text

EXACT = {"threads": 1, "activations": "float32", "cache_type": "float32"}
TEXT = "Once upon a time there was a little girl who lived in a house near the wood. "


@pytest.fixture
def model(harness: Any, quick_tale: Path) -> Any:
    return harness.PliantLM(pretrained=str(quick_tale), batch_size="auto", **EXACT)


def test_likelihoods_are_those_of_our_own_evaluation(harness: Any, model: Any) -> None:
    (score, _), (good, _), (bad, greedy) = model.loglikelihood(
        [harness.Instance("", TEXT), harness.Instance("Once upon a", " time"),
         harness.Instance("Once upon a ", "xylophone")],
        disable_tqdm=True,
    )  # fmt: skip
    loss = evaluate_text(model.engine, model.tokenizer, [TEXT])
    assert score == pytest.approx(-loss.nats, rel=1e-4)
    assert good > bad and not greedy


def test_greedy_is_said_of_what_generation_writes(harness: Any, model: Any) -> None:
    (written,) = model.generate_until(
        [harness.Instance("Once upon a", {"until": [], "max_gen_toks": 3})], disable_tqdm=True
    )
    assert written
    ids = model.tok_encode("Once upon a")
    whole = ids + model.tok_encode("Once upon a" + written)[len(ids) :]
    (answer,) = model._loglikelihood_tokens([(None, ids, whole[len(ids) :])], disable_tqdm=True)
    assert answer[1]


def test_rolling_scores_every_token_of_long_texts_once(harness: Any, quick_tale: Path) -> None:
    short = harness.PliantLM(pretrained=str(quick_tale), max_length=16, **EXACT)
    long_text = TEXT * 3
    values = short.loglikelihood_rolling(
        [harness.Instance(long_text), harness.Instance(TEXT)], disable_tqdm=True
    )
    tokens = short.tok_encode(long_text)
    whole, expected = [short.prefix_token_id, *tokens], 0.0
    for begin in range(0, len(tokens), 16):
        end = min(begin + 16, len(tokens))
        ((value, _),) = short._loglikelihood_tokens(
            [(None, whole[max(0, end - 16) : begin + 1], tokens[begin:end])], disable_tqdm=True
        )
        expected += value
    assert values[0] == pytest.approx(expected, rel=1e-4) and values[1] > values[0]


def test_generation_ends_where_it_is_told_and_is_the_engines(harness: Any, model: Any) -> None:
    ask = {"until": ["."], "max_gen_toks": 40, "do_sample": False}
    texts = model.generate_until(
        [harness.Instance("Once upon a time", dict(ask)), harness.Instance("The fox", dict(ask))],
        disable_tqdm=True,
    )
    with pliant.open(model._opened.artifact.path) as artifact:
        engine = artifact.engine(**EXACT)
        for prompt, text in zip(["Once upon a time", "The fox"], texts, strict=True):
            ours = engine.generate(prompt, max_tokens=40, stop=(".",)).text
            assert text.strip() == ours.strip() and "." not in text


def test_long_contexts_lose_their_beginning(harness: Any, quick_tale: Path) -> None:
    short = harness.PliantLM(pretrained=str(quick_tale), max_length=32, **EXACT)
    ask = {"until": [], "max_gen_toks": 8}
    (text,) = short.generate_until([harness.Instance(TEXT * 4, ask)], disable_tqdm=True)
    with pliant.open(quick_tale) as artifact:
        prompt = artifact.tokenizer.encode(TEXT * 4)[-24:]
        ours = artifact.engine(**EXACT).generate(prompt, max_tokens=8)
    assert text.strip() == ours.text.strip()
    with pytest.raises(UsageError, match="takes 32 in all"):
        short.generate_until([harness.Instance("a", {"max_gen_toks": 32})], disable_tqdm=True)


def test_chat_templates(harness: Any, chat_artifact: Path, quick_tale: Path) -> None:
    model = harness.PliantLM(pretrained=f"{chat_artifact}@d2", **EXACT)
    user = {"role": "user", "content": "hello"}
    asked = model.apply_chat_template([user])
    assert asked == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    begun = model.apply_chat_template(
        [user, {"role": "assistant", "content": "Well,"}], add_generation_prompt=False
    )
    assert begun.endswith("<|im_start|>assistant\nWell,")
    assert "im_start" in model.chat_template(True) and model.chat_template(False) is None
    assert model.tokenizer_name == "a.pliant@d2"
    with pytest.raises(UsageError, match="this model has default"):
        model.chat_template("tools")
    # The template wrote BOS where it wants it: none is added to a text that begins with it.
    bos = model.tok_decode([model.prefix_token_id], skip_special_tokens=False)
    assert model.tok_encode(bos + "a").count(model.prefix_token_id) == 1


def test_cuts_and_options(harness: Any, quick_tale: Path) -> None:
    model = harness.PliantLM(pretrained=f"{quick_tale}@b3", batch_size="4", device="cpu", **EXACT)
    assert model.batch_size == 4 and model.get_model_info()["model_cut"] == "tale.pliant@b3"
    assert model.engine.subnet.bits.blocks[0].q == 3
    for named, words in [
        ({"subnet": "b4"}, "Two cuts"),
        ({"dtype": "float16"}, "dtype: the model pliant takes"),
        ({"batch_size": 0}, "from 1 on"),
    ]:
        with pytest.raises(UsageError, match=words):
            harness.PliantLM(pretrained=f"{quick_tale}@b3", **named)
    with pytest.raises(UsageError, match="num_beams: pliant takes"):
        model.generate_until([harness.Instance("a", {"num_beams": 2, "max_gen_toks": 2})])


def test_a_missing_package_is_named_with_its_command() -> None:
    program = (
        "import importlib.util as util; found = util.find_spec\n"
        "util.find_spec = lambda name: None if name == 'lm_eval' else found(name)\n"
        "from pliant.lm_eval.__main__ import main\nprint(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "pip install 'pliant[lm-eval]'" in done.stderr, done.stderr
