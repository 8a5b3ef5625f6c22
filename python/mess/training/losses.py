"""The losses of stage 2, each usable alone, on logits (B, C, H, W) and labels (B, H, W) of the same size.

Positive filtering distillation (the paper's PFD): a pixel's cross-entropy counts only where the teacher, the final
exit, is right; its distillation term counts everywhere. Every loss is a mean over *all* valid pixels, filtered ones
included, so the filter also lowers the weight of an image on which the teacher fails. No gradient reaches the teacher.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mess.data.dataset import IGNORE_INDEX

LossKind = Literal["pfd", "kd", "ce"]


def cross_entropy(logits: Tensor, labels: Tensor, *, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Mean cross-entropy over valid pixels; 0 when there is none.

    Args:
        logits: (B, C, H, W) float.
        labels: (B, H, W) int64, 0..C-1 or `ignore_index`.
        ignore_index: label of pixels that count for nothing.
    """
    _check(logits, None, labels)
    pixels = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum")
    return pixels / (labels != ignore_index).sum().clamp(min=1)


def knowledge_distillation(
    logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    alpha: float = 0.5,
    temperature: float = 1.0,
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    """Mean over valid pixels of alpha CE(y, t) + (1 - alpha) T^2 KL(p_teacher || p) (Hinton et al., 2015).

    Arguments as for `positive_filtering_distillation`.
    """
    return _distillation(logits, teacher_logits, labels, alpha, temperature, ignore_index, filtered=False)


def positive_filtering_distillation(
    logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    alpha: float = 0.5,
    temperature: float = 1.0,
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    """Mean over valid pixels of alpha 1[argmax y_N = t] CE(y_i, t) + (1 - alpha) T^2 KL(p_N || p_i).

    A 1 x 2 picture with two classes: the student says (0, 0) at both pixels, so CE is ln 2 at both. The teacher says
    (ln 3, 0), that is p = (3/4, 1/4), at both, and KL(p_N || p_i) = 3/4 ln(3/2) + 1/4 ln(1/2) = 0.1308. With labels
    (0, 1) the teacher is right at the first pixel only: (0.5 ln 2 + 0.5 * 0.1308 + 0.5 * 0.1308) / 2 = 0.2387.

    >>> student = torch.zeros(1, 2, 1, 2)
    >>> teacher = torch.tensor([1.0986123, 0.0]).reshape(1, 2, 1, 1).expand(1, 2, 1, 2)
    >>> round(float(positive_filtering_distillation(student, teacher, torch.tensor([[[0, 1]]]))), 4)
    0.2387

    Args:
        logits: (B, C, H, W) float of the early exit.
        teacher_logits: (B, C, H, W) float of the final exit; detached here.
        labels: (B, H, W) int64, 0..C-1 or `ignore_index`.
        alpha: weight of the cross-entropy, 0..1 (0.5 is our default, the source gives none).
        temperature: softens both distributions, > 0 (1 is our default).
        ignore_index: label of pixels that are out of both terms.

    Returns:
        A scalar; 0 when no pixel is valid.
    """
    return _distillation(logits, teacher_logits, labels, alpha, temperature, ignore_index, filtered=True)


def exit_loss(
    kind: LossKind, logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, alpha: float, temperature: float
) -> Tensor:
    """The loss that `kind` names; arguments as above."""
    if kind == "ce":
        return cross_entropy(logits, labels)
    if kind == "kd":
        return knowledge_distillation(logits, teacher_logits, labels, alpha=alpha, temperature=temperature)
    if kind == "pfd":
        return positive_filtering_distillation(logits, teacher_logits, labels, alpha=alpha, temperature=temperature)
    raise ValueError(f"loss: expected 'pfd', 'kd' or 'ce', got {kind!r}")


def _distillation(
    logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    alpha: float,
    temperature: float,
    ignore_index: int,
    *,
    filtered: bool,
) -> Tensor:
    _check(logits, teacher_logits, labels)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: expected 0..1, got {alpha}")
    if not temperature > 0:
        raise ValueError(f"temperature: expected > 0, got {temperature}")
    teacher = teacher_logits.detach()
    valid = labels != ignore_index
    kept = valid & (teacher.argmax(dim=1) == labels) if filtered else valid
    target = torch.where(kept, labels, ignore_index)
    ce = F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="sum")
    log_p = F.log_softmax(logits / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    p_teacher = log_teacher.exp()
    # a class that the teacher excludes (logit -infinity) adds 0, not 0 * infinity
    kl = torch.where(p_teacher > 0, p_teacher * (log_teacher - log_p), 0.0).sum(dim=1)  # (B, H, W)
    distilled = temperature**2 * torch.where(valid, kl, 0.0).sum()
    return (alpha * ce + (1 - alpha) * distilled) / valid.sum().clamp(min=1)


def _check(logits: Tensor, teacher_logits: Tensor | None, labels: Tensor) -> None:
    if logits.ndim != 4:
        raise ValueError(f"logits: expected (B, C, H, W), got {tuple(logits.shape)}")
    if teacher_logits is not None and teacher_logits.shape != logits.shape:
        raise ValueError(f"teacher_logits: expected shape {tuple(logits.shape)}, got {tuple(teacher_logits.shape)}")
    expected = (logits.shape[0], *logits.shape[2:])
    if tuple(labels.shape) != expected or labels.dtype != torch.int64:
        raise ValueError(f"labels: expected int64 of shape {expected}, got {labels.dtype} {tuple(labels.shape)}")
