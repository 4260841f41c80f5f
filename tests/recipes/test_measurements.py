"""Measurements carried from another machine: read or refused, and devices learned from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from pliant.costs import Step
from pliant.costs.calibration import CacheTerms, Calibration, ProductPoint, Terms
from pliant.costs.device import PROFILES, Device, read_device
from pliant.costs.measured import MeasuredStep, learned
from pliant.costs.timing import decode_time, expected_step, prefill_time
from pliant.costs.transfer import Transfer
from pliant.errors import UsageError
from pliant.recipes.measurements import read_measurements, with_measurements
from pliant.recipes.probe_engine import Model, _spec, timed_steps
from pliant.spec import ModelSpec
from pliant.subnet import Subnet

BOARD = read_device(PROFILES / "raspberry-pi-5.toml")
CARD = read_device(PROFILES / "l4.toml")


def spec_of(hidden: int, blocks: int) -> ModelSpec:
    return _spec(hidden, blocks, 4, 2, hidden // 4, 2 * hidden, 300)


SUBNETS = [
    Subnet.full(spec_of(hidden, blocks), planes)
    for hidden, blocks, planes in ((64, 2, 8), (128, 3, 4), (256, 4, 2), (512, 2, 5), (1024, 4, 3))
]


def probed(slower: float = 1.0, rest: float = 1.0) -> Device:
    """A probed device with one thread; `slower` products and `rest` of all else."""
    points = tuple(
        ProductPoint(planes=planes, tokens=tokens, set_bytes=1.0, seconds=tokens * planes * 1e-12)
        for planes in range(1, 9) for tokens in (1, 128)
    )  # fmt: skip
    seconds = Terms(product=slower, load=2e-10 * rest, row=5e-11 * rest, entry=1e-9 * rest,
                    value=5e-10 * rest, gate=2e-9 * rest, call=1e-8 * rest, tile=1e-8 * slower,
                    step=1e-5 * rest)  # fmt: skip
    calibration = Calibration(threads=1, kernels="avx2", products=points, seconds=seconds,
                              decode_error=0.2, prefill_error=0.2)  # fmt: skip
    return msgspec.structs.replace(BOARD, name="box", calibrations=(calibration,))


def made_on(device: Device, noise: float = 0.0, **fields: Any) -> list[MeasuredStep]:
    """A token and a prompt of each subnet, timed on a device that is made up."""
    draw = np.random.default_rng(0)
    steps = []
    for subnet in SUBNETS:
        for tokens, cached, found in (
            (1, 50, decode_time(subnet, device, 50)), (200, 0, prefill_time(subnet, device, 200)),
        ):  # fmt: skip
            seconds = found.seconds * float(np.exp(draw.normal(0, noise)))
            steps.append(MeasuredStep(subnet=subnet, tokens=tokens, cached=cached,
                                      seconds=seconds, **fields))  # fmt: skip
    return steps


def test_a_device_of_three_terms_is_found_exactly() -> None:
    truth = Transfer(operation_seconds=3e-12, byte_seconds=2e-11, step_seconds=1e-5,
                     error=0.0, samples=4)  # fmt: skip
    found = learned(CARD, made_on(msgspec.structs.replace(CARD, transfer=truth)))
    assert found.transfer is not None and found.transfer.samples == 10
    assert found.transfer.error < 1e-3
    for name in ("operation_seconds", "byte_seconds", "step_seconds"):
        assert getattr(found.transfer, name) == pytest.approx(getattr(truth, name), rel=1e-2)
    assert "10 measurements there" in decode_time(SUBNETS[0], found, 9).basis


@pytest.mark.parametrize("slower, rest", [(2.5, 2.5), (3.0, 1.2), (0.5, 1.0)])
def test_a_probed_device_is_corrected(slower: float, rest: float) -> None:
    """Another clock, or another memory, than when it was probed."""
    truth, known = probed(slower, rest), probed()
    found = learned(known, made_on(truth, noise=0.02))
    (calibration,) = found.calibrations
    assert calibration.measured_there == 10
    unseen = Subnet.full(spec_of(384, 3), 6)
    for time in (decode_time, prefill_time):
        real, before, after = (time(unseen, device, 77).seconds for device in (truth, known, found))
        assert abs(after / real - 1) < min(0.1, abs(before / real - 1))
    assert calibration.decode_error < 0.1
    assert "10 measurements there" in decode_time(unseen, found, 9).basis


def test_few_measurements_give_one_factor() -> None:
    found = learned(probed(), made_on(probed(2.0, 2.0))[:1])
    (calibration,) = found.calibrations
    assert calibration.seconds.product == pytest.approx(2.0)
    assert calibration.seconds.step == pytest.approx(2e-5)


def test_steps_of_other_threads_are_left_out() -> None:
    two = msgspec.structs.replace(probed().calibrations[0], threads=2)
    both = msgspec.structs.replace(probed(), calibrations=(probed().calibrations[0], two))
    slow = msgspec.structs.replace(probed(3.0, 3.0).calibrations[0], threads=2)
    truth = msgspec.structs.replace(both, calibrations=(slow,))
    found = learned(both, made_on(truth, threads=2))
    assert found.calibrations[0] == both.calibrations[0]
    assert found.calibrations[1].seconds.product == pytest.approx(3.0, rel=0.01)
    with pytest.raises(UsageError, match=r"probed with \(1, 2\)"):
        learned(both, made_on(probed(), threads=7))


def test_this_machine_with_two_threads_is_another_device() -> None:
    """Real times of real engines: what eight steps teach foresees the others within a factor."""
    models = [Model(spec_of(hidden, 3), 4, ((1, 1), (60, 1), (0, 16))) for hidden in (64, 128, 256)]
    samples = timed_steps(2, rounds=2, models=models)
    subnets = [Subnet.full(model.spec, model.planes) for model in models for _ in model.steps]
    steps = [
        MeasuredStep(subnet=subnet, tokens=sample.step.tokens, cached=sample.step.cached,
                     threads=2, seconds=sample.seconds)
        for subnet, sample in zip(subnets, samples, strict=True)
    ]  # fmt: skip
    found = learned(CARD, steps[:4] + steps[5:])
    assert found.transfer is not None and found.transfer.samples == 8
    ((graph, step),) = steps[4].parts()
    assert expected_step(graph, step, found).seconds > 0
    corrected = learned(msgspec.structs.replace(
        probed(), calibrations=(msgspec.structs.replace(probed().calibrations[0], threads=2),)
    ), steps)  # fmt: skip
    assert corrected.calibrations[0].measured_there == 9


def test_a_cache_of_other_bits_has_terms_of_its_own() -> None:
    (calibration,) = probed().calibrations
    seconds = msgspec.structs.replace(calibration.seconds, row=1e-9)
    known = msgspec.structs.replace(
        calibration, caches=(CacheTerms(bits=8, seconds=seconds, error=0.3),)
    )
    device = msgspec.structs.replace(probed(), calibrations=(known,))
    step = MeasuredStep(subnet=SUBNETS[2], seconds=1.0, cached=100, cache_bits=8)
    ((eight, one),) = step.parts()
    ((sixteen, _),) = msgspec.structs.replace(step, cache_bits=16).parts()
    ((most, _),) = msgspec.structs.replace(step, cache_bits=32).parts()
    slow, fast = expected_step(eight, one, device), expected_step(sixteen, one, device)
    assert slow.seconds > fast.seconds and slow.error == 0.3 and fast.error == 0.2
    assert "float16" not in slow.basis
    assert "32 bits counted as float16" in expected_step(most, one, device).basis
    corrected = learned(device, made_on(msgspec.structs.replace(device, calibrations=(
        msgspec.structs.replace(known, seconds=Terms(**{
            name: 2 * getattr(known.seconds, name) for name in Terms.__struct_fields__})),)))
    )  # fmt: skip
    assert corrected.calibrations[0].caches[0].seconds.row == pytest.approx(2e-9, rel=0.05)


def written(path: Path, steps: list[MeasuredStep]) -> Path:
    path.write_bytes(msgspec.json.encode({"steps": steps, "machine": "passed over"}))
    return path


def test_files_are_read_and_given_to_devices(tmp_path: Path) -> None:
    steps = made_on(probed(2.0, 2.0))
    path = written(tmp_path / "a=b.json", steps)
    assert read_measurements(path) == steps
    (one,) = with_measurements([probed()], [str(path)])
    board, box = with_measurements([BOARD, probed()], [f"box={path}", f"box={path}"])
    assert board == BOARD and box.calibrations[0].measured_there == 20
    assert one.calibrations[0].measured_there == 10
    with pytest.raises(UsageError, match="NAME="):
        with_measurements([BOARD, probed()], [str(path)])


@pytest.mark.parametrize(
    "change, word",
    [
        ({"seconds": 0}, "above 0"),
        ({"seconds": -1.0}, "above 0"),
        ({"seconds": 1e300}, "Step 0"),
        ({"seconds": "soon"}, "Step 0"),
        ({"tokens": 0}, "cannot have been measured"),
        ({"tokens": 4000, "cached": 97}, "reads 4096"),
        ({"tokens": 2**40}, "cannot have been measured"),
        ({"cache_bits": 7}, "Step 0"),
        ({"threads": -1}, "cannot have been measured"),
        ({"surprise": 1}, "surprise"),
        ({"subnet": {}}, "Step 0"),
    ],
)
def test_steps_that_cannot_be(tmp_path: Path, change: dict[str, Any], word: str) -> None:
    (step, *_) = json.loads(msgspec.json.encode(made_on(probed())))
    path = tmp_path / "steps.json"
    path.write_text(json.dumps({"steps": [step | change]}))
    with pytest.raises(UsageError, match=word):
        read_measurements(path)


@pytest.mark.parametrize(
    "text, word",
    [("", "no measurements"), ("[]", "no measurements"), ('{"steps": []}', "0 steps"),
     ("{}", "no measurements"), ('{"steps": [1]}', "Step 0"),
     ('{"steps": [' + "[" * 5000 + "]" * 5000 + "]}", "steps.json"), ("\xff", "no measurements")],
)  # fmt: skip
def test_files_that_are_none(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "steps.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=word):
        read_measurements(path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_measurements(tmp_path / "missing.json")


def test_a_few_steps_are_too_few_for_an_unknown_device() -> None:
    with pytest.raises(UsageError, match="4 at least"):
        learned(CARD, made_on(probed())[:3])
    with pytest.raises(msgspec.ValidationError, match="0 or more"):
        msgspec.convert(
            {"operation_seconds": -1.0, "byte_seconds": 0.0, "step_seconds": 0.0, "error": 0.0,
             "samples": 9}, Transfer,
        )  # fmt: skip


def test_a_step_of_measured_tokens_is_the_engines(tmp_path: Path) -> None:
    step = MeasuredStep(subnet=SUBNETS[0], seconds=1.0, tokens=300)
    assert [part.tokens for _, part in step.parts()] == [128, 128, 44]
    assert [part for _, part in MeasuredStep(subnet=SUBNETS[0], seconds=1.0, cached=9).parts()] == [
        Step.decode(9)
    ]
