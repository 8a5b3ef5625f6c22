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
    return ExitLoss("ce", logits, labels, ignore_index=ignore_index)(logits)


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
    return _distillation("kd", logits, teacher_logits, labels, alpha, temperature, ignore_index)


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

    A 2 x 2 image with two classes: the student says (0, 0) everywhere, so CE is ln 2 at every pixel. The teacher says
    (ln 3, 0), that is p_N = (3/4, 1/4), and KL(p_N || p_i) = 3/4 ln(3/2) + 1/4 ln(1/2) = 0.1308 at every pixel. Of the
    labels ((0, 1), (255, 0)) three are valid, and the teacher is right at two of them:
    (2 * 0.5 ln 2 + 3 * 0.5 * 0.1308) / 3 = 0.2965. Without the filter (knowledge distillation) the cross-entropy counts
    at all three: (3 * 0.5 ln 2 + 3 * 0.5 * 0.1308) / 3 = 0.4120.

    >>> student = torch.zeros(1, 2, 2, 2)
    >>> teacher = torch.tensor([1.0986123, 0.0]).reshape(1, 2, 1, 1).expand(1, 2, 2, 2)
    >>> labels = torch.tensor([[[0, 1], [255, 0]]])
    >>> round(float(positive_filtering_distillation(student, teacher, labels)), 4)
    0.2965
    >>> round(float(knowledge_distillation(student, teacher, labels)), 4)
    0.412
    >>> round(float(cross_entropy(student, labels)), 4)
    0.6931

    Args:
        logits: (B, C, H, W) float of the early exit.
        teacher_logits: (B, C, H, W) float of the final exit; detached here.
        labels: (B, H, W) int64, 0..C-1 or `ignore_index`.
        alpha: weight of the cross-entropy, 0..1 (0.5 is our default, the source gives none).
        temperature: softens both distributions, > 0 (1 is our default).
        ignore_index: label of pixels that are out of both terms.

    Returns:
        A scalar; 0 when no pixel is valid and no logit is NaN.
    """
    return _distillation("pfd", logits, teacher_logits, labels, alpha, temperature, ignore_index)


class ExitLoss:
    """One of the losses above on one batch, for any number of heads: what all of them share is worked out once.

    With soft targets s = alpha 1[kept] onehot(t) + (1 - alpha) T^2 p_N the loss of a head is
    (constant - sum over pixels and classes of s log p_i) / valid pixels: one log-softmax of the head's logits and one
    product, whatever the loss; at a temperature other than 1 the two terms need a log-softmax each.

    Args:
        kind: `pfd`, `kd` or `ce`.
        teacher_logits: (B, C, H, W) float of the final exit; for `ce` only its shape counts.
        labels, alpha, temperature, ignore_index: as for `positive_filtering_distillation`.

    Attributes:
        num_valid: scalar int64 tensor, pixels that count; the mean is over them.
    """

    def __init__(
        self,
        kind: LossKind,
        teacher_logits: Tensor,
        labels: Tensor,
        *,
        alpha: float = 0.5,
        temperature: float = 1.0,
        ignore_index: int = IGNORE_INDEX,
    ) -> None:
        if kind not in ("pfd", "kd", "ce"):
            raise ValueError(f"loss: expected 'pfd', 'kd' or 'ce', got {kind!r}")
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha: expected 0..1, got {alpha}")
        if not temperature > 0:
            raise ValueError(f"temperature: expected > 0, got {temperature}")
        _check(teacher_logits, labels)
        self.kind, self.shape, self.labels, self.ignore_index = kind, teacher_logits.shape, labels, ignore_index
        valid = labels != ignore_index
        self.num_valid = valid.sum()
        if kind == "ce":
            return
        teacher = _wide(teacher_logits.detach())
        self._excludes = bool(torch.isneginf(teacher).any())
        kept = valid & (teacher.argmax(dim=1) == labels) if kind == "pfd" else valid
        log_teacher = F.log_softmax(teacher / temperature, dim=1)
        share = (1 - alpha) * temperature**2 * (log_teacher.exp() * valid.unsqueeze(1))
        # a class that the teacher excludes (logit -infinity) adds 0, not 0 * infinity
        self._constant = torch.where(share > 0, share * log_teacher, 0.0).sum()
        soft, one_hot = share, torch.zeros_like(share)
        one_hot.scatter_(1, torch.where(kept, labels, 0).unsqueeze(1), alpha * kept.unsqueeze(1).to(share.dtype))
        self._terms = [(soft + one_hot, 1.0)] if temperature == 1 else [(one_hot, 1.0), (soft, temperature)]

    def __call__(self, logits: Tensor) -> Tensor:
        """The mean (a scalar; 0 when no pixel is valid and no logit is NaN) for a head's logits (B, C, H, W)."""
        if logits.shape != self.shape:
            raise ValueError(f"logits: expected shape {tuple(self.shape)}, the teacher's, got {tuple(logits.shape)}")
        logits = _wide(logits)
        if self.kind == "ce":
            total = F.cross_entropy(logits, self.labels, ignore_index=self.ignore_index, reduction="sum")
        else:
            if self._excludes:  # a class that the head excludes too adds nothing either
                logits = logits.clamp(min=torch.finfo(logits.dtype).min / 2)
            total = self._constant + sum(
                F.cross_entropy(logits if t == 1 else logits / t, target, reduction="sum") for target, t in self._terms
            )
        return total / self.num_valid.clamp(min=1)


def _wide(logits: Tensor) -> Tensor:
    """float16 as float32: a sum over the pixels of a batch is beyond it."""
    return logits.float() if logits.dtype == torch.float16 else logits


def _distillation(
    kind: LossKind,
    logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    alpha: float,
    temperature: float,
    ignore_index: int,
) -> Tensor:
    _check(logits, labels)
    if teacher_logits.shape != logits.shape:
        raise ValueError(f"teacher_logits: expected shape {tuple(logits.shape)}, got {tuple(teacher_logits.shape)}")
    prepared = ExitLoss(kind, teacher_logits, labels, alpha=alpha, temperature=temperature, ignore_index=ignore_index)
    return prepared(logits)


def _check(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 4:
        raise ValueError(f"logits: expected (B, C, H, W), got {tuple(logits.shape)}")
    expected = (logits.shape[0], *logits.shape[2:])
    if tuple(labels.shape) != expected or labels.dtype != torch.int64:
        raise ValueError(f"labels: expected int64 of shape {expected}, got {labels.dtype} {tuple(labels.shape)}")
