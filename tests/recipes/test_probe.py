"""A probe of a few tiny models: whole, carried as JSON, and its fit finds what it is made of."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from pliant.costs.calibration import Calibration, ProductPoint, Terms, step_terms
from pliant.costs.device import Device, load_device
from pliant.recipes import doctor, probe, probe_engine
from pliant.recipes.probe_engine import Sample, fitted, timed_steps
from pliant.runtime import kernel_speed
from pliant.runtime.kernel_speed import kernel_name


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few, small things are measured; times are not looked at."""
    spec = probe_engine._spec(32, 1, 2, 1, 16, 64, 64)
    models = (probe_engine.Model(spec, 4, ((2, 1), (1, 1), (0, 4), (5, 3), (7, 1))),)
    monkeypatch.setattr(probe_engine, "MODELS", models)
    monkeypatch.setattr(probe, "CACHE_MODELS", models)
    monkeypatch.setattr(probe_engine, "_LEAST_SECONDS", 0.0001)
    monkeypatch.setattr(probe, "_PLANES", (4, 5))
    monkeypatch.setattr(probe, "_TOKENS", (4, 8))
    monkeypatch.setattr(probe, "_PASSES", 1)
    monkeypatch.setattr(probe, "_SHARED_BYTES", 2**14)
    monkeypatch.setattr(probe, "_ROWS", 64)
    monkeypatch.setattr(probe, "_COLUMNS", 64)
    monkeypatch.setattr(probe, "largest_cache_bytes", lambda: 0)
    monkeypatch.setattr(kernel_speed, "_FILE_BYTES", 2**16)
    monkeypatch.setattr(kernel_speed, "_EDGE", 32)
    monkeypatch.setattr("pliant.runtime.bandwidth.probe_bytes", lambda: 2**22)


def test_a_probe_is_a_device(tmp_path: Path) -> None:
    stages: list[str] = []
    device = probe.probe(1, lambda stage, done, total: stages.append(f"{done}/{total}"))
    assert stages[-1] == "5/5"
    assert [item.threads for item in device.calibrations] == [1]
    assert all(item.steps_fitted == 5 for item in device.calibrations)
    for item in device.calibrations:
        assert [cache.bits for cache in item.caches] == list(probe.PROBED_CACHES)
        assert item.knows_cache(8) and item.knows_cache(16) and not item.knows_cache(32)
    assert probe._read_counts(6) == [1, 2, 4, 6]
    assert device.kernels == kernel_name()
    assert 10_000_000 < device.runtime_bytes < 500_000_000
    assert 0 < device.memory_bytes < device.memory.value
    path = probe.save_device(device, tmp_path / "there" / "box.json")
    assert load_device(str(path)) == device
    assert msgspec.json.decode(path.read_bytes(), type=Device) == device


def test_disturbed_kernels_are_no_slower_than_they_can_be() -> None:
    def points(*seconds: float) -> list[ProductPoint]:
        return [
            ProductPoint(planes=planes, tokens=1, set_bytes=1.0, seconds=taken)
            for planes, taken in enumerate(seconds, 1)
        ]

    kept = probe.plausible(points(9.0, 2.0, 3.0, 8.0), points(4.0, 4.0, 4.0, 5.0))
    assert [(point.planes, point.seconds) for point in kept] == [
        (1, 2.0), (2, 2.0), (3, 3.0), (4, 5.0),
    ]  # fmt: skip
    quiet = points(1.0, 2.0, 3.0)
    assert probe.plausible(quiet, quiet) == quiet


def test_the_fit_finds_terms_that_made_the_times() -> None:
    points = tuple(
        ProductPoint(planes=planes, tokens=tokens, set_bytes=1.0, seconds=tokens * 1e-11)
        for planes in range(1, 9) for tokens in (1, 8)
    )  # fmt: skip
    truth = Terms(product=1.1, row=6e-11, value=7e-10, gate=3e-9, call=2e-8, step=3e-5)
    bare = Calibration(threads=1, kernels="avx2", products=points, seconds=Terms())
    samples = []
    for trial in timed_steps(1, rounds=1):
        terms = step_terms(trial.graph, trial.step, bare)
        samples.append(Sample(trial.graph, trial.step, terms.dot(truth)))
    found = fitted(bare, samples)
    foreseen = [step_terms(s.graph, s.step, found).dot(found.seconds) for s in samples]
    np.testing.assert_allclose(foreseen, [s.seconds for s in samples], rtol=0.05)
    assert found.steps_fitted == len(samples)


def test_terms_of_a_cache_are_found() -> None:
    points = tuple(
        ProductPoint(planes=planes, tokens=tokens, set_bytes=1.0, seconds=tokens * 1e-12)
        for planes in range(1, 9) for tokens in (1, 8)
    )  # fmt: skip
    base = Terms(product=1.0, load=2e-10, row=5e-11, entry=1e-9, value=5e-10, step=1e-6)
    bare = Calibration(threads=1, kernels="avx2", products=points, seconds=base)
    truth = Terms(product=1.0, load=6e-10, row=2e-10, entry=3e-9, value=5e-10, step=1e-6)
    models = [
        probe_engine.Model(probe_engine._spec(32, 2, 4, groups, 16, 64), 4,
                           ((100, 1), (400, 1), (200, 40)))
        for groups in (1, 4)
    ]  # fmt: skip
    samples = [
        Sample(one.graph, one.step, step_terms(one.graph, one.step, bare).dot(truth))
        for one in timed_steps(1, 8, rounds=1, models=models)
    ]
    (found,) = probe_engine.with_cache(bare, 8, samples).caches
    assert found.bits == 8 and found.seconds.product == 1.0
    foreseen = [step_terms(s.graph, s.step, bare).dot(found.seconds) for s in samples]
    np.testing.assert_allclose(foreseen, [s.seconds for s in samples], rtol=0.06)
    assert found.error < 0.1


def test_a_doctor_looks_at_everything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "_SET_BYTES", 2**14)
    monkeypatch.setattr(doctor, "_EDGE", 64)
    monkeypatch.setattr(doctor, "profile_path", lambda: tmp_path / "this.json")
    findings = {finding.topic: finding for finding in doctor.examine()}
    assert {"kernels", "threads", "bandwidth", "memory", "profile"} <= set(findings)
    assert "pliant probe" in findings["profile"].advice
    quiet = probe.probe(1)
    probe.save_device(msgspec.structs.replace(quiet, others_share=0.01), tmp_path / "this.json")
    (found,) = doctor._profile()
    assert found.state == "ok"
    probe.save_device(msgspec.structs.replace(quiet, others_share=0.4), tmp_path / "this.json")
    (found,) = doctor._profile()
    assert found.state == "advice" and "beside other programs" in found.found
    assert all((finding.state == "ok") == (not finding.advice) for finding in findings.values())
    monkeypatch.setattr(doctor, "kernel_name", lambda: "scalar")
    (kernels,) = doctor._kernels()
    assert kernels.state == "problem"
    assert doctor.worst([*findings.values(), kernels]) == "problem"
    assert doctor.worst([]) == "ok"
