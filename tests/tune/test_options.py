"""Settings that cannot be are refused; rates rise and fall; the prediction of memory holds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pliant.errors import OutOfSpaceError, UsageError
from pliant.models import Supernet
from pliant.recipes.train_demo import DemoShape
from pliant.tune import (
    TuneOptions,
    hidden_states,
    rate_factor,
    require_memory,
    shape_loss,
    tuning_memory,
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"window_tokens": 256}, "window of 256"),
        ({"batch_tokens": 100}, "does not divide"),
        ({"distill": 1.5}, "0 .. 1"),
        ({"balance_limit": 0.5}, "balance_limit"),
        ({"matrix_rate": 0.0}, "above 0"),
        ({"final_rate": 2.0}, "final_rate"),
        ({"schedule": "steep"}, "no schedule 'steep'"),
        ({"precision": "int4"}, "no precision 'int4'"),
    ],
)
def test_impossible_settings_are_refused(
    options: TuneOptions, change: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        replace(options, **change)


def test_rates_rise_then_fall() -> None:
    for schedule in ("cosine", "linear"):
        rates = [rate_factor(step, 20, 4, 0.1, schedule) for step in range(21)]  # type: ignore[arg-type]
        assert max(rates) in rates[3:5]
        assert rates[4:] == sorted(rates[4:], reverse=True)
        assert rates[-1] == pytest.approx(0.1)
    assert rate_factor(19, 20, 4, 0.1, "constant") == rate_factor(5, 20, 0, 0.1, "constant") == 1


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("vocabulary", [512, 40_000])
def test_activations_stay_within_what_is_announced(vocabulary: int, checkpointing: bool) -> None:
    """What autograd keeps for the backward pass, counted by storage."""
    shape = DemoShape(num_blocks=6, hidden_size=64, num_heads=8, num_groups=2, head_dim=8,
                      ffn_size=160, vocab_size=vocabulary, context=128)  # fmt: skip
    model = Supernet.initialized(shape.spec(), 0)
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens_BT = torch.arange(129).expand(8, 129)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden_BTD = hidden_states(model, tokens_BT[:, :-1], model.shape, checkpointing)
        loss = shape_loss(model, hidden_BTD.flatten(0, 1), tokens_BT[:, 1:].flatten())
    options = TuneOptions(steps=1, batch_tokens=1024, micro_tokens=1024, window_tokens=128,
                          checkpointing=checkpointing)  # fmt: skip
    announced = tuning_memory(model.spec, options).activations
    assert sum(kept.values()) <= announced
    if not checkpointing and vocabulary == 512:
        assert announced <= 2 * sum(kept.values())
    loss.objective.backward()


def test_too_little_memory_is_foreseen_and_the_largest_batch_named() -> None:
    spec = DemoShape().spec()
    options = TuneOptions(steps=1, batch_tokens=8192, micro_tokens=8192, window_tokens=256)
    needed = tuning_memory(spec, options).total
    assert require_memory(spec, options, needed).total == needed
    with pytest.raises(OutOfSpaceError, match=r"largest that fits is --micro-tokens 7936\."):
        require_memory(spec, options, needed - 1)
    one = replace(options, micro_tokens=256)
    with pytest.raises(OutOfSpaceError, match=r"--micro-tokens .* --checkpointing"):
        require_memory(spec, options, tuning_memory(spec, one).total - 1)
    with pytest.raises(OutOfSpaceError, match="one window alone needs"):
        require_memory(spec, options, 10**6)


def test_a_mode_has_the_numbers_that_measured_best_for_it() -> None:
    smol, full = TuneOptions.of(10), TuneOptions.of(10, "full")
    assert smol.mode == "smol" and smol.vector_rate == 0.008
    assert smol.adapters is not None and smol.adapters.anchored
    assert (smol.balance, smol.random_shapes) == (False, 4)
    assert full == TuneOptions(10)
    # Where the full shape is tuned too, the small ones must not drown it.
    assert TuneOptions.of(10, teacher="tuned").balance
    assert TuneOptions.of(10, vector_rate=0.1, balance=True).vector_rate == 0.1
    with pytest.raises(UsageError, match="no mode"):
        TuneOptions.of(10, "lora")  # type: ignore[arg-type]
