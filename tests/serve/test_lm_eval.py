"""lm-eval's `local-completions` against a live server scores as our model in its own process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'pliant[conformance]'")
pytest.importorskip("tenacity")

#: Of each token's log-probability: one is summed in float64, the other in blocks of float32.
TOLERANCE = 1e-6
PAIRS = [
    ("The fox went", " home to its hill."),
    ("The fox went", " hill its to home."),
    ("", "A text without a context."),
    ("One, two,", " three."),
]


class Asked:
    """A request of lm-eval."""

    def __init__(self, *args: Any) -> None:
        self.args = args


@pytest.fixture(scope="module", params=["served", "local"])
def theirs(request: pytest.FixtureRequest, live: Any, random_checkpoint: Path) -> Any:
    """The client, with the tokenizer the server offers or one of the checkpoint."""
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    local = {"tokenizer_backend": "huggingface", "tokenizer": str(random_checkpoint)}
    served = {"tokenizer_backend": "auto"}
    return LocalCompletionsAPI(
        base_url=f"{live.url}/v1/completions",
        model="tiny",
        max_length=128,
        batch_size=3,
        max_retries=1,
        **(served if request.param == "served" else local),
    )


@pytest.fixture(scope="module")
def ours(random_artifact: Path) -> Any:
    from pliant.lm_eval import PliantLM

    return PliantLM(str(random_artifact), threads=1, batch_size=3)


def test_log_likelihoods(theirs: Any, ours: Any) -> None:
    asked = [Asked(*pair) for pair in PAIRS]
    found = theirs.loglikelihood(asked, disable_tqdm=True)
    expected = ours.loglikelihood(asked, disable_tqdm=True)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    for (one, _), (other, _), (_, text) in zip(found, expected, PAIRS, strict=True):
        # A continuation has no more tokens than letters.
        assert one == pytest.approx(other, rel=0, abs=TOLERANCE * max(len(text), 1))


def test_rolling_windows(theirs: Any, random_artifact: Path) -> None:
    from pliant.lm_eval import PliantLM

    # It sends the tokens it scores with those before them, and has one more written.
    ours = PliantLM(str(random_artifact), threads=1, batch_size=3, max_length=126)
    asked = [Asked("The fox said hello to the old man. " * 8)]
    (found,) = theirs.loglikelihood_rolling(asked, disable_tqdm=True)
    (expected,) = ours.loglikelihood_rolling(asked, disable_tqdm=True)
    letters = len(asked[0].args[0])
    assert found == pytest.approx(expected, rel=0, abs=TOLERANCE * letters)


def test_texts(theirs: Any, ours: Any) -> None:
    asked = [Asked("The fox", {"until": ["\n"], "max_gen_toks": 12, "temperature": 0})]
    found = theirs.generate_until(asked, disable_tqdm=True)
    assert found == ours.generate_until(asked, disable_tqdm=True)
