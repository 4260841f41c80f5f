"""Golden logits are met by the same model, and by no other."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from pliant.errors import ArtifactError, VerificationError
from pliant.evaluate import check_golden, golden_json, read_golden, record_golden, verify_golden


def nudge(model: Any, amount: float) -> None:
    """Change every logit by up to `amount`."""
    change = np.random.default_rng(1).uniform(-amount, amount, model._bigram.shape)
    model._bigram += change.astype(np.float32)


def test_the_same_model_meets_them_in_every_bit(model: Any) -> None:
    record = record_golden(model, "d4-b3", "avx2")
    check = check_golden(model, record, "avx2")
    assert (check.bitwise, check.worst, check.prompts) == (True, 0, 3)
    assert record.address == "d4-b3"
    assert [len(prompt.tokens) for prompt in record.prompts] == [1, 7, 33]


def test_prompts_stay_the_same(make_model: Callable[..., Any]) -> None:
    # golden.json of older artifacts has these; a change would not break them, only hide a mistake.
    record = record_golden(make_model(vocab_size=257), "", "scalar")
    assert record.prompts[0].tokens == KNOWN_PROMPTS[0]
    assert record.prompts[1].tokens == KNOWN_PROMPTS[1]
    short = record_golden(make_model(max_context=5), "", "scalar")
    assert [len(prompt.tokens) for prompt in short.prompts] == [1, 5, 5]


def test_the_last_bit_counts_on_the_same_machine_only(model: Any) -> None:
    record = record_golden(model, "", "avx2", "float32")
    nudge(model, 1e-6)
    check = check_golden(model, record, "scalar")
    assert not check.bitwise
    assert 0 < check.worst < 1e-5 < check.tolerance
    with pytest.raises(VerificationError, match="same bits"):
        check_golden(model, record, "avx2")


def test_rounded_activations_may_differ_more(model: Any) -> None:
    records = {kind: record_golden(model, "", "avx2", kind) for kind in ("int8", "float32")}
    nudge(model, 0.1)
    assert 0.01 < check_golden(model, records["int8"], "scalar").worst < 0.1
    with pytest.raises(VerificationError, match=r"at most 0\.00195 of their RMS"):
        check_golden(model, records["float32"], "scalar")


def test_another_model_is_found_out_everywhere(model: Any, make_model: Callable[..., Any]) -> None:
    record = record_golden(model, "", "avx2")
    for other in (make_model(seed=1), make_model(noise=1.0)):
        for kernels in ("avx2", "scalar"):
            with pytest.raises(VerificationError, match="full model"):
                check_golden(other, record, kernels)
    model._bigram[:] = np.nan
    with pytest.raises(VerificationError):
        check_golden(model, record, "scalar")


def test_a_smaller_model_is_not_read_beyond_its_end(
    model: Any, make_model: Callable[..., Any]
) -> None:
    record = record_golden(model, "", "avx2")
    with pytest.raises(VerificationError, match="another artifact"):
        check_golden(make_model(vocab_size=40), record, "avx2")
    with pytest.raises(VerificationError, match="another artifact"):
        check_golden(make_model(max_context=8), record, "avx2")


def test_a_model_without_numbers_is_not_recorded(model: Any) -> None:
    model._past[:] = np.inf
    with pytest.raises(VerificationError, match="not numbers"):
        record_golden(model, "", "avx2")


def test_file_and_verification(tmp_path: Path, make_model: Callable[..., Any]) -> None:
    models = {"": make_model(), "b3": make_model(noise=0.5)}
    records = [record_golden(model, address, "avx2") for address, model in models.items()]
    path = tmp_path / "golden.json"
    path.write_bytes(golden_json(records))
    assert read_golden(path) == records

    @contextmanager
    def open_model(address: str, activations: str) -> Iterator[Any]:
        assert activations == "int8"
        yield models[address]

    calls: list[tuple[str, int, int]] = []
    checks = verify_golden(path, open_model, "avx2", lambda *call: calls.append(call))
    assert [check.bitwise for check in checks] == [True, True]
    assert calls[-1][1:] == (2, 2)
    models["b3"] = models[""]
    with pytest.raises(VerificationError, match="'b3'"):
        verify_golden(path, open_model, "avx2")


PROMPT = {"tokens": [1], "ids": [2], "values": [0.5], "rms": 1.0, "sha256": ""}


@pytest.mark.parametrize(
    "change",
    [{"tokens": []}, {"tokens": [-1]}, {"ids": []}, {"ids": [2, 3]}, {"ids": [-2]}, {"rms": "x"},
     {"more": 1}],
    ids=str,
)  # fmt: skip
def test_damaged_files(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "golden.json"
    record = {"address": "", "conditions": "", "prompts": [PROMPT]}
    path.write_bytes(msgspec.json.encode([record]))
    assert len(read_golden(path)) == 1
    path.write_bytes(msgspec.json.encode([{**record, "prompts": [{**PROMPT, **change}]}]))
    with pytest.raises(ArtifactError, match=r"golden\.json"):
        read_golden(path)


@pytest.mark.parametrize(
    "content", [None, b"", b"{}", b"[" * 99999, b"\xff", b'[{"address": "\xff"}]']
)
def test_files_that_are_none(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "golden.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"golden\.json"):
        read_golden(path)


KNOWN_PROMPTS = [(98,), (161, 223, 46, 219, 153, 231, 232)]


def test_every_kernel_path_meets_the_logits_of_the_build(random_artifact: Path) -> None:
    code = """
import sys
from contextlib import contextmanager
from pathlib import Path
import pliant
from pliant.evaluate import verify_golden
with pliant.open(sys.argv[1]) as model:
    @contextmanager
    def open_model(address, activations):
        yield model.engine(address, threads=1, activations=activations).engine
    kernels = model.engine().engine.kernels
    checks = verify_golden(Path(sys.argv[1]) / "golden.json", open_model, kernels)
    print(kernels, len(checks), all(check.bitwise for check in checks))
"""
    from pliant import _native

    for path in _native.kernels.paths():
        done = subprocess.run(
            [sys.executable, "-c", code, str(random_artifact)],
            env={**os.environ, "PLIANT_ISA": path},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        kernels, count, bitwise = done.stdout.split()
        assert (kernels, int(count)) == (path, 4)
        assert bitwise == "True" or path != _native.kernels.best()
