"""The tuner on a tiny model: shapes learn, gradients are balanced, runs resume to the bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.tune.conftest import of_one_and_two_processes, tiny_mixture, tiny_model

from pliant.calibrate import mean_loss
from pliant.data import Mixture, Source
from pliant.errors import CheckpointError, DataError, UsageError
from pliant.models import Supernet
from pliant.shape import ShapeSpace, SubnetShape
from pliant.tune import (
    LOG_FILE,
    Sandwich,
    ShapeTuner,
    StopRequest,
    TeacherKind,
    TuneOptions,
    Workers,
    named_shapes,
    only,
)


def heldout() -> torch.Tensor:
    return torch.from_numpy(tiny_mixture(9).windows(0, 16, 32))


def losses(model: Supernet, space: ShapeSpace) -> dict[str, float]:
    return {named.name: mean_loss(model, heldout(), named.shape) for named in named_shapes(space)}


def gradients(model: Supernet, options: TuneOptions, mixture: Mixture, space: ShapeSpace):
    """The mean gradient of the first step, by weight, and the losses of its shapes."""
    tuner = ShapeTuner(model, Sandwich(space), mixture, options)
    losses_S2 = tuner._accumulate_gradients(Sandwich(space)(0))
    return {name: weight.grad for name, weight in tuner.model.weights.items()}, losses_S2


def test_one_tuning_lifts_every_shape(
    model: Supernet, space: ShapeSpace, mixture: Mixture, options: TuneOptions
) -> None:
    options = replace(options, steps=60)
    before = losses(model, space)
    ShapeTuner(model, Sandwich(space), mixture, options).run()
    after = losses(model, space)
    for name, loss in before.items():
        assert after[name] < loss - 0.3, name
    assert after["d3-w1"] <= after["d1-w0.5"]
    # One shape alone in as many steps is the upper bound that joint tuning is measured by.
    alone, named = tiny_model(), named_shapes(space)[3]
    ShapeTuner(alone, only(named), mixture, options).run()
    assert mean_loss(alone, heldout(), named.shape) < after[named.name] + 0.02


def test_a_tuning_of_one_shape_leaves_what_it_does_not_use(
    model: Supernet, space: ShapeSpace, mixture: Mixture, options: TuneOptions
) -> None:
    before = {name: weight.detach().clone() for name, weight in model.weights.items()}
    ShapeTuner(model, only(named_shapes(space)[3]), mixture, options).run()
    for name, weight in model.weights.items():
        if name.startswith("blocks.1."):
            assert torch.equal(weight, before[name]), name
        else:
            assert not torch.equal(weight, before[name]), name
    assert torch.equal(model.weights["blocks.0.gate"][32:], before["blocks.0.gate"][32:])
    assert not torch.equal(model.weights["blocks.0.gate"][:32], before["blocks.0.gate"][:32])


def test_a_subnet_runs_in_training_as_its_own_model_does(model: Supernet) -> None:
    from pliant.tune import hidden_states

    tokens_BT = torch.arange(20)[None]
    shape = SubnetShape((0, 2), (1, 2), (32, 64))
    views = model.logits(hidden_states(model, tokens_BT, shape))
    apart = model.sliced(SubnetShape((0, 2), (1, 2), (32, 64)))(tokens_BT)
    torch.testing.assert_close(views, apart, rtol=0, atol=1e-5)


def test_checkpointing_changes_no_bit_of_the_gradient(
    space: ShapeSpace, mixture: Mixture, options: TuneOptions
) -> None:
    plain, _ = gradients(tiny_model(), options, mixture, space)
    again, _ = gradients(tiny_model(), replace(options, checkpointing=True), mixture, space)
    for name, gradient in plain.items():
        assert torch.equal(gradient, again[name]), name


def test_smaller_pieces_give_the_same_gradient(
    space: ShapeSpace, mixture: Mixture, options: TuneOptions
) -> None:
    unbalanced = replace(options, balance=False)  # factors are taken per piece
    whole, _ = gradients(tiny_model(), replace(unbalanced, micro_tokens=128), mixture, space)
    pieces, _ = gradients(tiny_model(), replace(unbalanced, micro_tokens=32), mixture, space)
    for name, gradient in whole.items():
        # Sums of a hundred products in another order.
        torch.testing.assert_close(gradient, pieces[name], rtol=1e-4, atol=1e-6)


def test_balancing_scales_each_shapes_gradient(
    space: ShapeSpace, mixture: Mixture, options: TuneOptions
) -> None:
    """With two shapes: the balanced sum minus the full shape's part is the other's, scaled."""
    ends = ShapeSpace(space.spec, (space.depths[0], space.depths[-1]), (1.0,))
    options = replace(options, micro_tokens=128, distill=0.0)
    balanced, found = gradients(tiny_model(), options, mixture, ends)
    plain, _ = gradients(tiny_model(), replace(options, balance=False), mixture, ends)
    tuner = ShapeTuner(tiny_model(), only(named_shapes(ends)[0]), mixture, options)
    tuner._accumulate_gradients(named_shapes(ends)[:1])
    factor = float(found[0, 0] / found[1, 0])
    assert abs(factor - 1) > 0.02
    for name, gradient in balanced.items():
        full = tuner.model.weights[name].grad / 2
        torch.testing.assert_close(
            gradient, full + factor * (plain[name] - full), rtol=1e-4, atol=1e-6
        )


def test_bfloat16_is_close_to_float32(
    space: ShapeSpace, mixture: Mixture, options: TuneOptions
) -> None:
    exact, half = (
        gradients(tiny_model(), replace(options, precision=precision), mixture, space)[1]
        for precision in ("float32", "bfloat16")
    )
    # Eight bits of mantissa through three blocks.
    torch.testing.assert_close(half, exact, rtol=0.03, atol=0)
    assert not torch.equal(half, exact)


def test_a_frozen_teacher_asks_the_full_shape_to_stay_as_it_is(
    model: Supernet, space: ShapeSpace, mixture: Mixture, options: TuneOptions
) -> None:
    """At the first step the full shape *is* its teacher: the objective is the entropy, the gradient
    nothing. After some steps the teacher still is what the model was."""
    frozen = replace(options, teacher="frozen", teacher_tokens=64)
    full = only(named_shapes(space)[0])
    tuner = ShapeTuner(model, full, mixture, frozen)
    losses_S2 = tuner._accumulate_gradients(full(0))
    said = tuner._frozen_words(torch.from_numpy(mixture.windows(0, 4, 33)))
    assert said is not None and said.teacher is not None
    entropy = torch.tensor(said.teacher.entropy())
    torch.testing.assert_close(losses_S2[0, 0], entropy, rtol=1e-5, atol=0)
    assert max(float(w.grad.abs().max()) for w in model.weights.values()) < 1e-6

    tuner = ShapeTuner(tiny_model(), Sandwich(space), mixture, frozen)
    tuner.run()
    assert tuner._teacher is not None
    for name, weight in tiny_model().weights.items():
        assert torch.equal(tuner._teacher.weights[name], weight), name
        assert not torch.equal(tuner.model.weights[name], weight), name


@pytest.mark.parametrize("teacher", ["tuned", "frozen"])
def test_a_resumed_run_ends_in_the_same_bits_and_the_same_log(
    space: ShapeSpace, mixture: Mixture, options: TuneOptions, tmp_path: Path, teacher: TeacherKind
) -> None:
    options = replace(options, teacher=teacher)

    def tuner(folder: str) -> ShapeTuner:
        (tmp_path / folder).mkdir(exist_ok=True)
        return ShapeTuner(tiny_model(), Sandwich(space), mixture, options, folder=tmp_path / folder)

    straight = tuner("straight")
    straight.run()
    first, stop = tuner("resumed"), StopRequest()

    def after_three(stage: str, done: int, total: int) -> None:
        stop.requested = done >= 3

    first.run(stop, after_three)
    assert 3 <= first.progress.step < options.steps
    # A run that is killed has logged steps which its saved state does not know.
    with (tmp_path / "resumed" / LOG_FILE).open("a") as log:
        log.write('{"step": 99}\n')
    second = tuner("resumed")
    assert second.progress.step == first.progress.step
    second.run()
    assert second.is_done
    for name, weight in straight.model.weights.items():
        assert torch.equal(weight, second.model.weights[name]), name

    def log(folder: str) -> list[dict[str, object]]:
        lines = (tmp_path / folder / LOG_FILE).read_text().splitlines()
        return [{**json.loads(line), "seconds": 0} for line in lines]

    assert log("straight") == log("resumed")
    assert [line["step"] for line in log("straight")] == list(range(1, 9))


def test_the_log_holds_the_unscaled_loss_of_every_shape(
    space: ShapeSpace, mixture: Mixture, options: TuneOptions, tmp_path: Path
) -> None:
    ShapeTuner(tiny_model(), Sandwich(space), mixture, options, folder=tmp_path).run()
    for step, line in enumerate((tmp_path / LOG_FILE).read_text().splitlines()):
        shapes = json.loads(line)["shapes"]
        assert [entry["shape"] for entry in shapes] == [n.name for n in Sandwich(space)(step)]
        assert shapes[0]["objective"] == shapes[0]["text_nats"]
        assert len({entry["text_nats"] for entry in shapes}) == 4


def test_a_frozen_teacher_stays_as_it_is(
    model: Supernet, space: ShapeSpace, mixture: Mixture, options: TuneOptions
) -> None:
    teacher = tiny_model(5)
    kept = {name: weight.detach().clone() for name, weight in teacher.weights.items()}
    ShapeTuner(model, only(named_shapes(space)[2]), mixture, options, teacher=teacher).run()
    for name, weight in teacher.weights.items():
        assert torch.equal(weight, kept[name]), name
        assert weight.grad is None


def test_state_of_other_settings_is_refused(
    space: ShapeSpace, mixture: Mixture, options: TuneOptions, tmp_path: Path
) -> None:
    sampler = Sandwich(space)
    ShapeTuner(tiny_model(), sampler, mixture, options, folder=tmp_path, fingerprint="a").run()
    with pytest.raises(UsageError, match="other settings"):
        ShapeTuner(tiny_model(), sampler, mixture, options, folder=tmp_path, fingerprint="b")
    (tmp_path / "training.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="damaged"):
        ShapeTuner(tiny_model(), sampler, mixture, options, folder=tmp_path, fingerprint="a")


def test_a_tuning_that_diverges_says_so(
    model: Supernet, space: ShapeSpace, mixture: Mixture, options: TuneOptions
) -> None:
    with torch.no_grad():
        model.weights["blocks.1.down"][0, 0] = float("nan")
    with pytest.raises(UsageError, match=r"step 1 is not finite.*lower rate"):
        ShapeTuner(model, Sandwich(space), mixture, options).run()


def test_a_text_shorter_than_two_windows(
    model: Supernet, space: ShapeSpace, options: TuneOptions
) -> None:
    short = Mixture([Source("short", np.arange(40, dtype=np.uint16), 1.0)], 0)
    with pytest.raises(DataError, match="fewer than two windows"):
        ShapeTuner(model, Sandwich(space), short, options).run()


def test_windows_must_divide_among_the_workers(
    model: Supernet, space: ShapeSpace, mixture: Mixture, options: TuneOptions
) -> None:
    with pytest.raises(UsageError, match="4 windows per step do not divide among 3"):
        ShapeTuner(model, Sandwich(space), mixture, options, workers=Workers(0, 3))


WORKER = """
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, sys.argv[2])
from tests.tune.conftest import tiny_mixture, tiny_model
from pliant.shape import ShapeSpace
from pliant.tune import Sandwich, ShapeTuner, TuneOptions, joined_workers

torch.set_num_threads(1)
options = TuneOptions(steps=4, batch_tokens=128, micro_tokens=32, window_tokens=32, warmup_steps=2,
                      teacher_tokens=16)
model = tiny_model()
space = ShapeSpace(model.spec, ((0, 1, 2), (0, 2), (2,)), (1.0, 0.5), alignment=32)
with joined_workers(torch.device("cpu")) as workers:
    tuner = ShapeTuner(model, Sandwich(space), tiny_mixture(), options, workers=workers)
    tuner.run()
    weights = {name: weight.detach() for name, weight in model.weights.items()}
    save_file(weights, Path(sys.argv[1]) / f"of-{workers.count}-{workers.rank}.safetensors")
"""


def test_two_processes_of_torchrun_take_the_steps_of_one(tmp_path: Path) -> None:
    alone, first, second = of_one_and_two_processes(WORKER, tmp_path)
    for name, weight in alone.items():
        assert torch.equal(first[name], second[name]), name
        # The same sums in another order, through four steps.
        torch.testing.assert_close(weight, first[name], rtol=1e-3, atol=1e-4)
