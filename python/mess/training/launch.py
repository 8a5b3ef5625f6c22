"""One process or many: what the loop needs beside the paper's arithmetic.

Devices, processes, mixed precision and data parallelism are Lightning Fabric's: one explicit object, no trainer, and
what `torchrun` sets is all it asks for. (Accelerate would do as well; it keeps its state in a process-wide singleton
and brings the hub client.)
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from mess.training.settings import Precision

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}


def launcher(network: nn.Module, precision: Precision) -> Fabric:
    """Fabric for this process: on the device of `network`, or, started by `torchrun`, one of its many.

    Under `torchrun` every process takes the GPU of its local rank, and `network` is moved there; or the CPU, if there
    are fewer GPUs than processes.

    Raises:
        ValueError: float16 without CUDA.
    """
    from lightning_fabric import Fabric  # a second to import, which only training should pay
    from lightning_fabric.strategies.ddp import DDPStrategy

    device = next(network.parameters()).device
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", str(processes)))
    options: dict[str, Any]
    if processes > 1:
        gpus = torch.cuda.device_count()
        if 0 < gpus < here:
            warnings.warn(
                f"{here} processes and {gpus} GPUs: all train on the CPU; start as many as GPUs", stacklevel=2
            )
        options = {"accelerator": "cuda" if gpus >= here else "cpu", "devices": here}
        # a batch leaves out all early heads but one
        options |= {"num_nodes": processes // here, "strategy": DDPStrategy(find_unused_parameters=True)}
        # gradients of 1x1 convolutions of channels-last images: the strides differ, not the order in memory
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    else:
        options = {"accelerator": device.type, "devices": 1 if device.index is None else [device.index]}
        options["devices"] = 1 if device.type == "cpu" else options["devices"]
    if precision == "float16" and options["accelerator"] != "cuda":
        raise ValueError(f"precision: expected 'float32' or 'bfloat16' on {options['accelerator']}, got 'float16'")
    fabric = Fabric(precision=_PRECISIONS[precision], **options)  # type: ignore[arg-type]
    fabric.launch()
    network.to(fabric.device)
    return fabric


def average_gradients(fabric: Fabric, parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over the processes, in one collective a dtype.

    For the heads of stage 2, which are backpropagated one by one; a parameter without gradient has none anywhere.
    """
    if fabric.world_size == 1:
        return
    groups: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            groups.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    for gradients in groups.values():
        joined = torch.cat([gradient.flatten() for gradient in gradients])
        mean = fabric.all_reduce(joined, reduce_op="mean")
        assert isinstance(mean, Tensor)
        for gradient, part in zip(gradients, torch.split(mean, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


@contextmanager
def batch_norm_synchronised(module: nn.Module, *, enabled: bool) -> Iterator[None]:
    """Inside, batch-norm layers of `module` that are in training mode normalise over all processes.

    What a layer does besides (timm's activate too) it does as ever. `torch.nn.SyncBatchNorm` does the same on GPUs
    only, and by other modules than the user's; where the user has it, it is taken for the batch norm that it is.
    """
    layers = [m for m in module.modules() if isinstance(m, _BatchNorm)] if enabled else []
    for layer in layers:
        layer.forward = partial(_forward, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _forward(layer: _BatchNorm, *args: Any, **options: Any) -> Tensor:
    """The layer's own, which asks `functional.batch_norm` to normalise."""
    own = F.batch_norm
    if layer.training:
        F.batch_norm = _synchronised_batch_norm
    try:
        is_torchs = isinstance(layer, nn.SyncBatchNorm)
        output: Tensor = (_BatchNorm if is_torchs else type(layer)).forward(layer, *args, **options)
        return output
    finally:
        F.batch_norm = own


def _synchronised_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`functional.batch_norm`, of the batches of all processes."""
    if not training:
        return _OF_ONE_PROCESS(input, running_mean, running_var, weight, bias, training, momentum, eps)
    axes = [0, *range(2, input.ndim)]
    shape = [1, -1, *[1] * (input.ndim - 2)]
    values = input.to(torch.promote_types(input.dtype, torch.float32))
    count = _sum_of_all(torch.tensor(float(input.numel() // input.shape[1]), device=input.device))
    mean = _sum_of_all(values.sum(axes)) / count
    centred = values - mean.view(shape)
    variance = _sum_of_all(centred.square().sum(axes)) / count
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean.detach().to(running_mean.dtype), momentum)
        unbiased = variance.detach() * (count / (count - 1).clamp(min=1))
        running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    normal = centred * (variance + eps).rsqrt().view(shape)
    normal = normal if weight is None else normal * weight.view(shape)
    normal = normal if bias is None else normal + bias.view(shape)
    return normal.to(input.dtype)


_OF_ONE_PROCESS = F.batch_norm


class _SumOfAll(torch.autograd.Function):
    """The sum over processes, as a step of the graph: its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _SumOfAll.forward(ctx, gradient.contiguous())


def _sum_of_all(x: Tensor) -> Tensor:
    total: Tensor = _SumOfAll.apply(x)
    return total
