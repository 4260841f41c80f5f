"""lm-eval itself on the local tasks: results equal to its Hugging Face model's on dense weights."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TASKS = ROOT / "benchmarks" / "tasks"
DATA = Path(os.environ.get("PLIANT_EVAL_DATA", ROOT.parent / "shared" / "data" / "eval"))
NAMES = ["pliant_blimp", "pliant_lambada", "pliant_arc_easy", "pliant_piqa"]
#: fp32 logits summed in another order, over up to some hundred tokens of a text.
TOLERANCE = 2e-3


class Asked:
    """A request of lm-eval."""

    def __init__(self, *args: Any) -> None:
        self.args = args


@pytest.fixture(scope="module")
def lm_eval() -> Any:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'pliant[lm-eval]'")
    pytest.importorskip("accelerate", reason="lm-eval's Hugging Face model needs accelerate")
    if not DATA.is_dir():
        pytest.skip("the evaluation files are not beside this checkout; set PLIANT_EVAL_DATA")
    import lm_eval

    return lm_eval


def results(lm_eval: Any, model: Any) -> Any:
    from lm_eval.tasks import TaskManager

    # Without its own thousands of tasks it starts at once.
    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model=model, tasks=NAMES, task_manager=manager, limit=12,
        bootstrap_iters=0, verbosity="ERROR",
    )  # fmt: skip
    answers = {
        name: [answer for sample in found["samples"][name] for answer in sample["filtered_resps"]]
        for name in NAMES
    }
    return found["results"], answers


def test_results_are_those_of_the_hugging_face_model(
    lm_eval: Any, quick_tale: Path, tmp_path: Path
) -> None:
    import torch
    from lm_eval.models.huggingface import HFLM

    from pliant.artifact import Artifact
    from pliant.export import export_hf, plan_hf
    from pliant.lm_eval import PliantLM

    torch.set_num_threads(1)
    export_hf(plan_hf(Artifact.open(quick_tale), "", "float32"), "", tmp_path / "dense")
    theirs_model = HFLM(pretrained=str(tmp_path / "dense"), dtype="float32", device="cpu",
                        batch_size=4)  # fmt: skip
    ours_model = PliantLM(pretrained=str(quick_tale), threads=1, activations="float32",
                          cache_type="float32", batch_size=4)  # fmt: skip
    theirs, their_answers = results(lm_eval, theirs_model)
    ours, our_answers = results(lm_eval, ours_model)
    worst = 0.0
    for name in NAMES:
        for mine, other in zip(our_answers[name], their_answers[name], strict=True):
            worst = max(worst, abs(mine[0] - other[0]))
            assert mine[1] == other[1], "greedy or not"
        for metric in ("acc,none", "acc_norm,none"):
            assert ours[name].get(metric) == theirs[name].get(metric)
    print(f"log-likelihoods differ by {worst:.2e} nats, {TOLERANCE} are allowed")
    assert worst <= TOLERANCE

    # The demo model's own settings would go before the length that lm-eval asks for.
    theirs_model.model.generation_config.max_new_tokens = None
    asked = Asked("Once upon a time", {"until": ["\n"], "max_gen_toks": 24})
    (text,) = theirs_model.generate_until([asked], disable_tqdm=True)
    assert ours_model.generate_until([asked], disable_tqdm=True) == [text] and text
    rolling = Asked("The fox said hello to the old man. " * 80)
    (value,) = theirs_model.loglikelihood_rolling([rolling], disable_tqdm=True)
    (ours_value,) = ours_model.loglikelihood_rolling([rolling], disable_tqdm=True)
    print(f"a text of many windows: {ours_value} and {value} nats")
    assert ours_value == pytest.approx(value, abs=10 * TOLERANCE)


def test_questions_are_taken_out_of_instructions() -> None:
    sys.path.insert(0, str(TASKS))
    try:
        from local_data import arc_document
    finally:
        sys.path.remove(str(TASKS))
    text = "Please choose the correct answer to the question: What?\n\nWhy?\n\n"
    answers = "Answer1: It is. Answer2: It is not.\n\nAnswer format: answer1/answer2"
    found = arc_document({"instruction": text + answers, "answer": "answer2"})
    assert found == {"question": "What?\n\nWhy?", "choices": ["It is.", "It is not."], "answer": 1}
    with pytest.raises(ValueError, match="numbered answers"):
        arc_document({"instruction": text + answers, "answer": "answer3"})
