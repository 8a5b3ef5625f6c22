"""Losses and schedules: docstring examples, by hand, laws."""

from __future__ import annotations

import doctest
import math

import pytest
import torch
from torch.nn import functional as F

import mess.training.losses as losses
import mess.training.schedule as schedule


@pytest.mark.parametrize("module", [losses, schedule])
def test_docstring_examples(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def random_case(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(2, 4, 5, 6, generator=generator, requires_grad=True)
    teacher = torch.randn(2, 4, 5, 6, generator=generator, requires_grad=True)
    labels = torch.randint(0, 4, (2, 5, 6), generator=generator)
    labels[0, 0] = 255
    return student, teacher, labels


def test_pfd_equals_the_formula_pixel_by_pixel():
    student, teacher, labels = random_case()
    alpha, total, valid = 0.3, 0.0, 0
    for b in range(2):
        for i in range(5):
            for j in range(6):
                t = int(labels[b, i, j])
                if t == 255:
                    continue
                valid += 1
                p, q = student.detach()[b, :, i, j].softmax(0), teacher.detach()[b, :, i, j].softmax(0)
                if int(q.argmax()) == t:
                    total += alpha * -math.log(float(p[t]))
                total += (1 - alpha) * float((q * (q / p).log()).sum())
    found = losses.positive_filtering_distillation(student, teacher, labels, alpha=alpha)
    assert float(found.detach()) == pytest.approx(total / valid, rel=1e-5)


def test_kd_is_pfd_without_the_filter():
    student, teacher, labels = random_case(1)
    right = teacher.detach().clone()
    right.scatter_(1, labels.clamp(max=3)[:, None], 50.0)  # a teacher that is right everywhere
    torch.testing.assert_close(
        losses.positive_filtering_distillation(student, right, labels),
        losses.knowledge_distillation(student, right, labels),
    )
    assert losses.positive_filtering_distillation(student, teacher, labels) < losses.knowledge_distillation(
        student, teacher, labels
    )


def test_no_gradient_reaches_the_teacher_or_ignored_pixels():
    student, teacher, labels = random_case(2)
    losses.positive_filtering_distillation(student, teacher, labels).backward()
    assert teacher.grad is None
    assert (student.grad[0, :, 0] == 0).all()
    assert (student.grad[1] != 0).any()


def test_a_class_that_the_teacher_excludes_adds_nothing():
    student, teacher, labels = random_case(6)
    teacher = teacher.detach()
    teacher[:, 3] = -torch.inf
    labels[labels == 3] = 0
    loss = losses.knowledge_distillation(student, teacher, labels)
    assert torch.isfinite(loss)
    loss.backward()
    assert torch.isfinite(student.grad).all()


def test_a_class_that_both_exclude_adds_nothing():
    student, teacher, labels = random_case(6)
    student, teacher = student.detach(), teacher.detach()
    labels[labels == 3] = 0
    others = [c for c in range(student.shape[1]) if c != 3]
    kept = labels.clone()
    kept[(labels > 3) & (labels != 255)] -= 1
    expected = losses.knowledge_distillation(student[:, others], teacher[:, others], kept)
    student[:, 3] = teacher[:, 3] = -torch.inf
    student.requires_grad_()
    loss = losses.knowledge_distillation(student, teacher, labels)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    loss.backward()
    assert torch.isfinite(student.grad).all()


def test_half_precision_holds_the_sum_of_a_large_batch():
    logits, labels = torch.zeros(1, 2, 512, 512, dtype=torch.float16), torch.zeros(1, 512, 512, dtype=torch.int64)
    assert float(losses.cross_entropy(logits, labels)) == pytest.approx(math.log(2), rel=1e-4)
    for loss in (losses.knowledge_distillation, losses.positive_filtering_distillation):
        assert float(loss(logits, logits, labels)) == pytest.approx(math.log(2) / 2, rel=1e-4)


def test_cross_entropy_is_torchs_mean():
    student, _, labels = random_case(3)
    torch.testing.assert_close(
        losses.cross_entropy(student, labels), F.cross_entropy(student, labels, ignore_index=255)
    )


@pytest.mark.parametrize("kind", ["pfd", "kd", "ce"])
def test_nothing_valid_is_zero_not_nan(kind):
    student, teacher, labels = random_case(4)
    loss = losses.ExitLoss(kind, teacher, torch.full_like(labels, 255), temperature=2.0)(student)
    assert float(loss.detach()) == 0.0


def test_temperature_flattens_both_sides():
    student, teacher, labels = random_case(5)
    t = 3.0
    found = losses.knowledge_distillation(student, teacher, labels, alpha=0.0, temperature=t)
    kl = F.kl_div((student / t).log_softmax(1), (teacher / t).log_softmax(1), reduction="none", log_target=True).sum(1)
    torch.testing.assert_close(found, t * t * kl[labels != 255].mean())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, t, y: losses.cross_entropy(s[0], y), r"logits: expected \(B, C, H, W\)"),
        (lambda s, t, y: losses.cross_entropy(s, y[:, 1:]), r"labels: expected int64 of shape \(2, 5, 6\)"),
        (lambda s, t, y: losses.cross_entropy(s, y.float()), r"labels: expected int64"),
        (lambda s, t, y: losses.knowledge_distillation(s, t[:1], y), r"teacher_logits: expected shape"),
        (lambda s, t, y: losses.knowledge_distillation(s, t, y, alpha=2), r"alpha: expected 0..1, got 2"),
        (lambda s, t, y: losses.knowledge_distillation(s, t, y, temperature=0), r"temperature: expected > 0"),
        (lambda s, t, y: losses.ExitLoss("mse", t, y), r"loss: expected 'pfd'"),
        (lambda s, t, y: schedule.active_exits("random", 1, 3), r"schedule: expected one of \('round_robin'"),
        (lambda s, t, y: schedule.active_exits("divisor", 0, 3), r"batch: expected a count from 1"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call(*random_case())
