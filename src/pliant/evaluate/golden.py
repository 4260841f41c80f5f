"""Golden logits: what a finished artifact computed when it was built, for `pliant verify`.

Hashes show that the bytes are the right ones; golden logits show that this machine computes with
them what the machine of the build computed.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from pliant.errors import ArtifactError, VerificationError
from pliant.measurement import Progress, silent
from pliant.runtime import Chunk, TokenModel

#: Lengths of the golden prompts: one token, an odd number, and one beyond most kernel tiles.
_LENGTHS = (1, 7, 33)
_NUM_TOP = 8
_NUM_PROBES = 24
#: What another order of summation may change, as the RMS of the watched differences over the RMS
#: of the logits; wrong weights or positions give 1.
#: - float32: cached keys and values are fp16, and a sum that differs in its last bit can move one
#:   by a step of 2^-11; four steps leave room (measured between kernel paths: 0.26 steps).
#: - int8: activations are rounded to 8 bits before each product; once one falls otherwise, the
#:   later ones do so too, and what remains is as large as the noise of the rounding itself
#:   (measured: 2.4 %, where int8 and float32 differ by 4.3 %); 20 % leaves room for deep models.
FLOAT32_TOLERANCE = 4 * 2.0**-11
_TOLERANCES = {"float32": FLOAT32_TOLERANCE, "int8": 0.2}

#: The arithmetic of an engine's matrix products.
Activations = Literal["int8", "float32"]


class GoldenPrompt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A prompt and the logits behind its last token.

    `ids` are the likeliest tokens followed by tokens spread over the vocabulary, `values` their
    float32 logits; `rms` is over all logits; `sha256` is of all as little-endian float32.
    """

    tokens: tuple[int, ...]
    ids: tuple[int, ...]
    values: tuple[float, ...]
    rms: float
    sha256: str


class GoldenRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Golden prompts of one subnet in one arithmetic.

    Under equal `conditions` they are the same bit by bit.
    """

    address: str
    activations: Activations = "int8"
    conditions: str
    prompts: tuple[GoldenPrompt, ...]


class GoldenCheck(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How well the golden logits were met.

    `bitwise`: all logits were equal in every bit. `worst` is the RMS of the watched differences
    of the worst prompt as a part of the RMS of its logits, to be compared with `tolerance`.
    """

    prompts: int
    bitwise: bool
    worst: float
    tolerance: float


def golden_conditions(kernels: str) -> str:
    """What must be equal for equal bits: kernel path, NumPy (rotary tables), C library, machine."""
    libc = "-".join(platform.libc_ver()) or platform.system()
    return f"{kernels}, numpy {np.__version__}, {libc}, {platform.machine()}"


def record_golden(
    model: TokenModel, address: str, kernels: str, activations: Activations = "int8"
) -> GoldenRecord:
    """Golden prompts of `model`, the subnet at `address` in the arithmetic `activations`.

    `kernels` names the kernel path that computes them.
    """
    prompts = []
    for tokens in _prompts(model):
        logits_V = _last_logits(model, tokens)
        if not np.isfinite(logits_V).all():
            raise VerificationError(
                f"The subnet {address!r} gives logits that are not numbers for the golden prompt "
                f"{tokens}; the checkpoint or the build is damaged."
            )
        ids = _watched(logits_V)
        prompts.append(
            GoldenPrompt(
                tokens=tokens,
                ids=tuple(ids.tolist()),
                # Shortest digits that are these float32 again: half the bytes of a double's.
                values=tuple(float(str(value)) for value in logits_V[ids]),
                rms=_rms(logits_V),
                sha256=_digest(logits_V),
            )
        )
    return GoldenRecord(
        address=address,
        activations=activations,
        conditions=golden_conditions(kernels),
        prompts=tuple(prompts),
    )


def check_golden(model: TokenModel, record: GoldenRecord, kernels: str) -> GoldenCheck:
    """Compare what `model` computes with `record`; `VerificationError` where it differs.

    Under the conditions of the record every bit must be equal; elsewhere the watched logits may
    differ as much as another order of summation explains.
    """
    tolerance = _TOLERANCES[record.activations]
    exact = record.conditions == golden_conditions(kernels)
    bitwise, worst = True, 0.0
    for prompt in record.prompts:
        if max((*prompt.tokens, *prompt.ids), default=0) >= model.vocab_size:
            raise VerificationError(
                f"The golden record of {record.address!r} names tokens beyond the model's "
                f"{model.vocab_size}; golden.json belongs to another artifact."
            )
        logits_V = _last_logits(model, prompt.tokens)
        bitwise = bitwise and _digest(logits_V) == prompt.sha256
        difference = logits_V[list(prompt.ids)] - np.asarray(prompt.values, np.float32)
        # NumPy's maximum keeps a NaN, and a NaN fails the comparison.
        worst = float(np.maximum(worst, _rms(difference) / max(prompt.rms, 1e-30)))
        if not worst <= tolerance or (exact and not bitwise):
            raise VerificationError(_complaint(record, prompt, worst, exact))
    return GoldenCheck(
        prompts=len(record.prompts), bitwise=bitwise, worst=worst, tolerance=tolerance
    )


def golden_json(records: Sequence[GoldenRecord]) -> bytes:
    """The content of `golden.json`, without white space: small models should stay small."""
    return msgspec.json.encode(list(records))


def read_golden(path: Path) -> list[GoldenRecord]:
    """The records in `golden.json`; `ArtifactError` where it is missing or damaged."""
    try:
        records = msgspec.json.decode(path.read_bytes(), type=list[GoldenRecord])
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{path} does not hold golden logits: {error}. Build the artifact again."
        ) from error
    for record in records:
        for prompt in record.prompts:
            wrong = not prompt.tokens or len(prompt.ids) != len(prompt.values)
            if wrong or not prompt.ids or min(*prompt.tokens, *prompt.ids) < 0:
                raise ArtifactError(
                    f"{path} has a golden prompt without tokens or logits, or with ids below 0. "
                    "Build the artifact again."
                )
    return records


def verify_golden(
    path: Path,
    open_model: Callable[[str, Activations], AbstractContextManager[TokenModel]],
    kernels: str,
    progress: Progress = silent,
) -> list[GoldenCheck]:
    """Check every record in `golden.json`; `open_model` gives the engine of an address."""
    records = read_golden(path)
    checks = []
    for done, record in enumerate(records, start=1):
        with open_model(record.address, record.activations) as model:
            checks.append(check_golden(model, record, kernels))
        progress("checking golden logits", done, len(records))
    return checks


def _prompts(model: TokenModel) -> list[tuple[int, ...]]:
    """The same ids for every model of one vocabulary, whatever NumPy's generators become."""
    ids = []
    for length in _LENGTHS:
        words = [hashlib.sha256(f"golden {length} {place}".encode()) for place in range(length)]
        ids.append(
            tuple(int.from_bytes(word.digest()[:8], "big") % model.vocab_size for word in words)
        )
    return [prompt[: model.max_context] for prompt in ids]


def _last_logits(model: TokenModel, tokens: Sequence[int]) -> NDArray[np.float32]:
    if len(tokens) > model.max_context:
        raise VerificationError(
            f"A golden prompt has {len(tokens)} tokens and the model's context is "
            f"{model.max_context}; golden.json belongs to another artifact."
        )
    chunk = Chunk(np.asarray(tokens, np.int32), model.new_cache(len(tokens)), logits="last")
    logits_V: NDArray[np.float32] = model.forward_chunk([chunk])[0][-1]
    return logits_V


def _watched(logits_V: NDArray[np.float32]) -> NDArray[np.int64]:
    """Ids of the likeliest tokens, then of some spread over the vocabulary."""
    top = np.argsort(-logits_V, kind="stable")[:_NUM_TOP]
    spread = np.linspace(0, len(logits_V) - 1, min(_NUM_PROBES, len(logits_V))).astype(np.int64)
    return np.concatenate([top, np.setdiff1d(spread, top)])


def _rms(logits_V: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(np.square(logits_V, dtype=np.float64))))


def _digest(logits_V: NDArray[np.float32]) -> str:
    return hashlib.sha256(np.ascontiguousarray(logits_V, "<f4").tobytes()).hexdigest()


def _complaint(record: GoldenRecord, prompt: GoldenPrompt, worst: float, exact: bool) -> str:
    name = f"the subnet {record.address!r}" if record.address else "the full model"
    limit = _TOLERANCES[record.activations]
    asked = "the same bits" if exact else f"a difference of at most {limit:.3g} of their RMS"
    return (
        f"The logits of {name} behind the golden prompt of {len(prompt.tokens)} tokens are not "
        f"those of the build: {asked} was asked for, {worst:.3g} of their RMS was found. Get the "
        "artifact again or rebuild it; if its hashes are right, report the machine."
    )
