"""Tuning of adapters: the weights stay, shapes learn, runs resume to the bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.tune.conftest import of_one_and_two_processes, tiny_mixture, tiny_model

from pliant.adapters import num_adapter_parameters
from pliant.calibrate import mean_loss
from pliant.data import Mixture
from pliant.errors import UsageError
from pliant.models import ShapeAdapters, Supernet
from pliant.shape import ShapeSpace
from pliant.tune import (
    LOG_FILE,
    Sandwich,
    ShapeTuner,
    StopRequest,
    TuneOptions,
    Workers,
    hidden_states,
    named_shapes,
    shape_loss,
    tuning_memory,
)


@pytest.fixture
def smol(options: TuneOptions) -> TuneOptions:
    return replace(options, mode="smol", rank=4, vector_rate=0.02, batch_tokens=64)


def adapted_model(options: TuneOptions) -> Supernet:
    model = tiny_model()
    assert options.adapters is not None
    model.adapters = ShapeAdapters.initialized(model.spec, options.adapters, options.seed)
    return model


@pytest.mark.parametrize("experts", [1, 5])
def test_shapes_learn_and_the_weights_stay(
    space: ShapeSpace, mixture: Mixture, smol: TuneOptions, experts: int, tmp_path: Path
) -> None:
    smol = replace(smol, experts=experts, top_k=min(experts, 2), steps=10)
    model, plain = adapted_model(smol), tiny_model()
    heldout_BT = torch.from_numpy(tiny_mixture(9).windows(0, 16, 32))
    ShapeTuner(model, Sandwich(space), mixture, smol, folder=tmp_path).run()
    for name, weight in plain.weights.items():
        assert torch.equal(model.weights[name], weight), name
        assert model.weights[name].grad is None
    for named in named_shapes(space):
        before, after = (mean_loss(m, heldout_BT, named.shape) for m in (plain, model))
        assert after < before - 0.05, named.name
    for line in (tmp_path / LOG_FILE).read_text().splitlines():
        for entry in json.loads(line)["shapes"]:
            assert ("experts" in entry) == (experts > 1)
            if experts > 1:
                assert sum(entry["experts"].values()) == pytest.approx(1, abs=2e-3)
                assert len(entry["experts"]) == 2


def test_under_a_frozen_teacher_the_full_shape_stays_to_the_bit(
    space: ShapeSpace, mixture: Mixture, smol: TuneOptions, tmp_path: Path
) -> None:
    """It is not run: its line of the log is the teacher's, and it changes no gradient."""
    smol = replace(smol, teacher="frozen", teacher_tokens=64, steps=10)
    assert smol.adapters is not None and smol.adapters.anchored
    assert not replace(smol, anchored=False).adapters.anchored  # type: ignore[union-attr]
    assert not replace(smol, teacher="tuned").adapters.anchored  # type: ignore[union-attr]
    assert not replace(smol, distill=0.0).adapters.anchored  # type: ignore[union-attr]
    model, plain = adapted_model(smol), tiny_model()
    ShapeTuner(model, Sandwich(space), mixture, smol, folder=tmp_path).run()
    tokens_BT = torch.arange(20)[None]
    assert torch.equal(model(tokens_BT), plain(tokens_BT))
    heldout_BT = torch.from_numpy(tiny_mixture(9).windows(0, 16, 32))
    for named in named_shapes(space)[1:]:
        before, after = (mean_loss(m, heldout_BT, named.shape) for m in (plain, model))
        assert after < before, named.name
    lines = (tmp_path / LOG_FILE).read_text().splitlines()
    first, last = (json.loads(lines[place])["shapes"] for place in (0, -1))
    full = first[0]
    # How far the smallest shape is from its teacher falls.
    assert last[-1]["objective"] - last[0]["objective"] < (
        first[-1]["objective"] - full["objective"]
    )
    assert full["shape"] == "d3-w1" and full["experts"] == {}
    assert full["objective"] < min(entry["objective"] for entry in first[1:])
    tuner = ShapeTuner(adapted_model(smol), Sandwich(space), mixture, smol)
    tuner._accumulate_gradients(Sandwich(space)(0)[:1])
    assert not tuner._gradients.flat.any()


def test_a_resumed_run_ends_in_the_same_bits(
    space: ShapeSpace, mixture: Mixture, smol: TuneOptions, tmp_path: Path
) -> None:
    smol = replace(smol, steps=3)

    def tuner(folder: str) -> ShapeTuner:
        (tmp_path / folder).mkdir(exist_ok=True)
        model = adapted_model(smol)
        return ShapeTuner(model, Sandwich(space), mixture, smol, folder=tmp_path / folder)

    straight, first, stop = tuner("straight"), tuner("resumed"), StopRequest()
    straight.run()

    def after_one(stage: str, done: int, total: int) -> None:
        stop.requested = done >= 1

    first.run(stop, after_one)
    assert not first.is_done
    second = tuner("resumed")
    assert second.progress.step == first.progress.step
    second.run()
    expected, found = straight.model.adapters, second.model.adapters
    assert expected is not None and found is not None
    assert "router.noise" in expected.tensors
    for name, tensor in expected.tensors.items():
        assert torch.equal(tensor, found.tensors[name]), name


def test_workers_add_up_to_one(space: ShapeSpace, mixture: Mixture, smol: TuneOptions) -> None:
    """Two workers see the same shapes and the same noise, so their gradients add up to one's."""

    def gradient(workers: Workers) -> torch.Tensor:
        options = replace(smol, balance=False, micro_tokens=32)
        tuner = ShapeTuner(
            adapted_model(options), Sandwich(space), mixture, options, workers=workers
        )
        tuner._accumulate_gradients(Sandwich(space)(0))
        return tuner._gradients.flat

    alone = gradient(Workers())
    parts = gradient(Workers(0, 2)) + gradient(Workers(1, 2))
    torch.testing.assert_close(parts, alone, rtol=1e-4, atol=1e-6)
    assert alone.abs().sum() > 0


WORKER = """
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

folder = Path(sys.argv[1])
sys.path.insert(0, sys.argv[2])
from tests.tune.conftest import tiny_mixture, tiny_model
from pliant.models import ShapeAdapters
from pliant.shape import ShapeSpace
from pliant.tune import Sandwich, ShapeTuner, StopRequest, TuneOptions, joined_workers

torch.set_num_threads(1)
options = TuneOptions(steps=3, batch_tokens=64, micro_tokens=32, window_tokens=32, warmup_steps=1,
                      teacher_tokens=16, mode="smol", rank=4, vector_rate=0.02)

def tuner(workers, state=None):
    model = tiny_model()
    model.adapters = ShapeAdapters.initialized(model.spec, options.adapters, options.seed)
    space = ShapeSpace(model.spec, ((0, 1, 2), (0, 2), (2,)), (1.0, 0.5), alignment=32)
    return ShapeTuner(model, Sandwich(space), tiny_mixture(), options, folder=state,
                      workers=workers)

with joined_workers(torch.device("cpu")) as workers:
    straight = tuner(workers)
    straight.run()
    if workers.count > 1:
        first, stop = tuner(workers, folder), StopRequest()

        def after_one(stage, done, total):
            stop.requested = True

        # Only one process is asked to stop; all do, at the same step.
        first.run(stop, after_one if not workers.is_first else lambda *_: None)
        assert first.progress.step == 2 and not first.is_done
        workers.wait()
        resumed = tuner(workers, folder)
        assert resumed.progress.step == 2
        resumed.run()
        for name, tensor in straight.model.adapters.tensors.items():
            assert torch.equal(tensor, resumed.model.adapters.tensors[name]), name
    tensors = {name: tensor.detach() for name, tensor in straight.model.adapters.tensors.items()}
    save_file(tensors, folder / f"of-{workers.count}-{workers.rank}.safetensors")
"""


def test_two_processes_of_torchrun_tune_adapters_as_one_and_resume_to_the_bit(
    tmp_path: Path,
) -> None:
    alone, first, second = of_one_and_two_processes(WORKER, tmp_path)
    for name, tensor in alone.items():
        assert torch.equal(first[name], second[name]), name
        # The same sums in another order, through three steps.
        torch.testing.assert_close(tensor, first[name], rtol=1e-3, atol=1e-4)
    assert any(tensor.abs().max() > 0 for name, tensor in alone.items() if name.endswith(".b"))


def test_checkpointing_changes_no_bit_of_the_gradient(
    space: ShapeSpace, mixture: Mixture, smol: TuneOptions
) -> None:
    gradients = []
    for checkpointing in (False, True):
        options = replace(smol, checkpointing=checkpointing)
        tuner = ShapeTuner(adapted_model(options), Sandwich(space), mixture, options)
        tuner._accumulate_gradients(Sandwich(space)(0))
        gradients.append(tuner._gradients.flat)
    assert torch.equal(*gradients)


def test_model_and_options_must_agree(
    space: ShapeSpace, mixture: Mixture, smol: TuneOptions, options: TuneOptions
) -> None:
    with pytest.raises(UsageError, match="give the model the adapters"):
        ShapeTuner(tiny_model(), Sandwich(space), mixture, smol)
    with pytest.raises(UsageError, match="full tuning"):
        ShapeTuner(adapted_model(smol), Sandwich(space), mixture, options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "lora"}, "no mode 'lora'"),
        ({"rank": 0}, "rank 0"),
        ({"experts": 1}, "2 of them used"),
        ({"experts": 65}, "65 experts"),
    ],
)
def test_settings_that_cannot_be(
    smol: TuneOptions, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        replace(smol, **changes)  # type: ignore[arg-type]


def test_what_autograd_keeps_is_within_the_prediction() -> None:
    options = TuneOptions(steps=1, batch_tokens=1024, micro_tokens=1024, window_tokens=32,
                          mode="smol", rank=8, anchored=False)  # fmt: skip
    model = adapted_model(options)
    assert model.adapters is not None and options.adapters is not None
    for name, tensor in model.adapters.tensors.items():
        model.adapters.tensors[name] = tensor.requires_grad_()
    owned = [*model.weights.values(), *model.adapters.tensors.values()]
    own = {tensor.untyped_storage().data_ptr() for tensor in owned}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens_BT = (torch.arange(33) % 64).expand(32, 33)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        adapted = model.at(model.shape, torch.zeros(5))
        hidden_BTD = hidden_states(adapted, tokens_BT[:, :-1], model.shape)
        shape_loss(adapted, hidden_BTD.flatten(0, 1), tokens_BT[:, 1:].flatten())
    merged = 2 * 4 * num_adapter_parameters(model.spec, options.adapters)
    announced = tuning_memory(model.spec, options)
    assert sum(kept.values()) <= announced.activations + merged
    full = tuning_memory(model.spec, replace(options, mode="full"))
    # One copy of the weights instead of four, five of the adapters.
    assert announced.weights < full.weights + 5 * 4 * num_adapter_parameters(
        model.spec, options.adapters
    )
    bigger = tuning_memory(model.spec, replace(options, rank=16)).weights
    assert bigger > announced.weights
