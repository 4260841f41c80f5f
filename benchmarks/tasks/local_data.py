"""Local evaluation files as data sets of lm-eval; the YAML files of this folder call these.

`PLIANT_EVAL_DATA` names the folder, else it is `shared/data/eval` beside the checkout. Each
function returns a data set with the split `test`; `limit` keeps the first documents.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

_BESIDE = Path(__file__).parents[3] / "shared" / "data" / "eval"
_CHOICE = re.compile(r"Answer\d+: ")


def data_folder() -> Path:
    """The folder of the files; `FileNotFoundError` says how to name another."""
    folder = Path(os.environ.get("PLIANT_EVAL_DATA", _BESIDE))
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is missing; set PLIANT_EVAL_DATA to the folder with blimp.tar.xz, lambada, "
            "arc and piqa."
        )
    return folder


def blimp(pairs: int = 20, **unused: Any) -> dict[str, Any]:
    """The first `pairs` minimal pairs of each of the 67 phenomena."""
    from pliant.evaluate.blimp import read_pairs

    rows = (
        {"phenomenon": name, "sentence_good": pair.good, "sentence_bad": pair.bad}
        for name, all_pairs in read_pairs(data_folder() / "blimp.tar.xz")
        for pair in all_pairs[:pairs]
    )
    return _data_set(rows)


def lambada(limit: int | None = None, **unused: Any) -> dict[str, Any]:
    """Passages whose last word is to be found."""
    lines = (data_folder() / "lambada" / "lambada_test.jsonl").read_text("utf-8").splitlines()
    return _data_set(map(json.loads, lines), limit)


def arc_easy(limit: int | None = None, **unused: Any) -> dict[str, Any]:
    """Questions with their choices, taken out of the instructions that hold both."""
    records = json.loads((data_folder() / "arc" / "arc_easy_test.json").read_text("utf-8"))
    return _data_set(map(arc_document, records), limit)


def arc_document(record: dict[str, str]) -> dict[str, Any]:
    """Question, choices and place of the right one; `ValueError` for another form."""
    parts = record["instruction"].split("\n\n")
    question = "\n\n".join(parts[:-2]).partition("question: ")[2]
    choices = [choice.strip() for choice in _CHOICE.split(parts[-2])[1:]]
    answer = int(record["answer"].removeprefix("answer")) - 1
    if not question or not 0 <= answer < len(choices):
        raise ValueError(f"not a question with numbered answers: {record['instruction'][:80]!r}")
    return {"question": question, "choices": choices, "answer": answer}


def piqa(limit: int | None = None, **unused: Any) -> dict[str, Any]:
    """Goals with two solutions."""
    folder = data_folder() / "piqa"
    labels = (folder / "valid-labels.lst").read_text("utf-8").split()
    lines = (folder / "valid.jsonl").read_text("utf-8").splitlines()
    rows = (
        {**json.loads(line), "label": int(label)} for line, label in zip(lines, labels, strict=True)
    )
    return _data_set(rows, limit)


def _data_set(rows: Iterable[dict[str, Any]], limit: int | None = None) -> dict[str, Any]:
    import datasets

    return {"test": datasets.Dataset.from_list(list(islice(rows, limit)))}
