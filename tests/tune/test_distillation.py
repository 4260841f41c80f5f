"""Losses of shapes: teachers with and without a rest, positions, pieces, balancing."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from pliant.models import Supernet
from pliant.tune import Teacher, balance_factor, hidden_states, shape_loss


def rows(count: int, vocabulary: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(count, vocabulary, generator=generator, dtype=torch.float64)


def test_a_whole_teacher_gives_the_soft_cross_entropy() -> None:
    words, student = rows(7, 11, 0), rows(7, 11, 1)
    expected = -(words.softmax(-1) * student.log_softmax(-1)).sum()
    for tokens in (11, 500):
        found = Teacher.of(words, tokens).cross_entropy(student)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("tokens", [1, 4, 10])
def test_the_rest_is_one_event_of_the_teachers_probability(tokens: int) -> None:
    words, student = rows(7, 11, 0), rows(7, 11, 1)
    p, q = words.softmax(-1), student.softmax(-1)
    expected = torch.zeros((), dtype=torch.float64)
    for row in range(7):
        kept = p[row].topk(tokens).indices
        expected -= (p[row, kept] * q[row, kept].log()).sum()
        expected -= (1 - p[row, kept].sum()) * (1 - q[row, kept].sum()).log()
    found = Teacher.of(words, tokens).cross_entropy(student)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("tokens", [3, 11])
def test_the_entropy_of_a_teacher_is_what_it_says_of_itself(tokens: int) -> None:
    words = rows(7, 11, 0)
    teacher = Teacher.of(words, tokens)
    assert teacher.entropy() == pytest.approx(float(teacher.cross_entropy(words)) / 7, rel=1e-12)
    # A teacher that is sure leaves nothing for the rest.
    sure = Teacher.of(torch.tensor([[1e4, 0.0, 0.0, 0.0]]), 1)
    assert sure.entropy() == 0


@pytest.mark.parametrize("tokens", [3, 11])
def test_a_student_that_agrees_has_no_gradient(tokens: int) -> None:
    student = rows(5, 11, 2).requires_grad_()
    Teacher.of(student, tokens).cross_entropy(student).backward()
    assert student.grad is not None
    # Gradients of up to 1 cancel to what fp64 rounding leaves.
    assert student.grad.abs().max() < 1e-14
    other = rows(5, 11, 3).requires_grad_()
    Teacher.of(student, tokens).cross_entropy(other).backward()
    assert other.grad is not None
    assert other.grad.abs().max() > 0.1


def test_a_confident_student_keeps_a_finite_gradient() -> None:
    student = torch.tensor([[200.0, 0.0, 0.0, 0.0]], requires_grad=True)
    Teacher.of(torch.zeros(1, 4), 1).cross_entropy(student).backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_parts_of_a_teacher_join_to_the_whole() -> None:
    for tokens in (3, 11):
        whole = Teacher.of(rows(10, 11, 0), tokens)
        joined = Teacher.joined(whole.split(4))
        assert torch.equal(joined.log_NK, whole.log_NK)
        assert torch.equal(joined.token_NK, whole.token_NK)
        assert (joined.log_rest_N is None) == (tokens == 11)


def test_the_prediction_of_each_token_is_learnt_from_its_own_teacher(model: Supernet) -> None:
    """Distillation takes the text's positions: moving the teacher by one row is another loss."""
    tokens_BT = torch.arange(10)[None]
    hidden_ND = hidden_states(model, tokens_BT[:, :-1], model.shape)[0]
    target_N = tokens_BT[0, 1:]
    own = shape_loss(model, hidden_ND, target_N, teaches=64)
    assert own.teacher is not None
    learnt = shape_loss(model, hidden_ND, target_N, own.teacher)
    entropy = -(own.teacher.log_NK.exp() * own.teacher.log_NK).sum() / 9
    torch.testing.assert_close(learnt.objective, entropy)
    torch.testing.assert_close(learnt.text_loss, own.objective)
    moved = Teacher(own.teacher.token_NK, own.teacher.log_NK.roll(1, 0), None)
    assert shape_loss(model, hidden_ND, target_N, moved).objective > learnt.objective + 0.1


def test_a_mixture_of_text_and_teacher(model: Supernet) -> None:
    tokens_BT = torch.arange(10)[None]
    hidden_ND = hidden_states(model, tokens_BT[:, :-1], model.shape)[0]
    teacher = Teacher.of(rows(9, 64, 0).float(), 64)
    text, words, both = (
        shape_loss(model, hidden_ND, tokens_BT[0, 1:], teacher, share).objective
        for share in (0.0, 1.0, 0.25)
    )
    torch.testing.assert_close(both, 0.25 * words + 0.75 * text)
    expected = functional.cross_entropy(model.logits(hidden_ND[None])[0], tokens_BT[0, 1:])
    torch.testing.assert_close(text, expected)


def test_logits_in_pieces_give_the_same_loss_and_gradient(model: Supernet) -> None:
    tokens_BT = torch.arange(30)[None]
    embedding = model.weights["embedding"]
    found = []
    for logit_bytes in (2**20, 4 * 64 * 7):
        embedding.grad = None
        hidden_ND = hidden_states(model, tokens_BT[:, :-1], model.shape)[0]
        first = shape_loss(model, hidden_ND, tokens_BT[0, 1:], teaches=8, logit_bytes=logit_bytes)
        loss = shape_loss(
            model, hidden_ND.flip(0), tokens_BT[0, 1:], first.teacher, 0.5, logit_bytes=logit_bytes
        )
        (first.objective + loss.objective).backward()
        assert embedding.grad is not None
        found.append((loss.objective.detach(), loss.text_loss, embedding.grad.clone()))
    for whole, pieces in zip(*found, strict=True):
        torch.testing.assert_close(whole, pieces, rtol=1e-5, atol=1e-6)


def test_balancing_makes_losses_equal_and_is_bounded() -> None:
    assert balance_factor(2.0, 4.0, 4.0) * 4.0 == 2.0
    assert balance_factor(2.0, 1.0, 4.0) * 1.0 == 2.0
    assert balance_factor(2.0, 100.0, 4.0) == 0.25
    assert balance_factor(2.0, 0.0, 4.0) == 4.0
    assert balance_factor(0.0, 0.0, 4.0) == 4.0
