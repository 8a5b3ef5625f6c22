"""Passes that compute shapes only (fake tensors), and leave nothing of them in the model.

A model may keep tensors for the next pass: a grid of coordinates, the mask of an attention, a table of positions, as
an attribute or behind `functools.lru_cache`. What it keeps of a trial would be found by its next real pass. So a trial
is made with a copy, whose parameters and buffers are those of the model; and what is still alive afterwards is taken
out of the caches that hold it.
"""

from __future__ import annotations

import copy
import functools
import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mess.model.adapter import quiet_attempt

Result = TypeVar("Result")


def on_trial(model: nn.Module, work: Callable[[nn.Module, Callable[[Tensor], Tensor]], Result]) -> Result:
    """`work(stand_in, fake)` for a model that stands in for this one, with what makes a tensor a fake one.

    Raises:
        Exception: whatever the model raises, as when it decides by a value.
    """
    for stand_in in _stand_ins(model):
        witness = _Witness()
        try:
            with quiet_attempt(), unfused(), FakeTensorMode(allow_non_fake_inputs=True) as mode, witness:
                return work(stand_in, mode.from_tensor)
        except Exception as error:
            failure = error.with_traceback(None)  # its frames hold tensors
        finally:
            del stand_in
            _forget(witness)
    raise failure


@contextmanager
def unfused() -> Iterator[None]:
    """Attention as the operations that it consists of: those that torch fuses in evaluation are counted by nobody."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _stand_ins(model: nn.Module) -> Iterator[nn.Module]:
    """A copy; and the model itself where there is none, or where hooks may refer to what was copied."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    for module in model.modules():
        memo.update((id(value), value) for value in vars(module).values() if isinstance(value, Tensor))
    try:
        made = copy.deepcopy(model, memo)
    except Exception:  # what it holds cannot be copied
        made = None
    if made is not None:
        yield made
    if made is None or any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        yield model


class _Witness(TorchDispatchMode):
    """Knows the tensors that were made while it was on, for as long as somebody else holds them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._made: list[weakref.ref[Tensor]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        self._made += [weakref.ref(leaf) for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        return output

    def alive(self) -> list[Tensor]:
        return [tensor for tensor in (reference() for reference in self._made) if tensor is not None]


def _forget(witness: _Witness) -> None:
    if not witness.alive():
        return
    gc.collect()
    kept: list[Any] = list(witness.alive())
    for _ in range(3):  # a tensor in a tuple in a cache
        if kept:
            kept = _taken_out(kept)


def _taken_out(kept: list[Any]) -> list[Any]:
    """Take these out of the caches that hold them; what holds them and is no cache."""
    ids = {id(value) for value in kept}
    holders: list[Any] = []
    for holder in gc.get_referrers(*kept):
        if isinstance(holder, functools._lru_cache_wrapper):
            holder.cache_clear()
        elif isinstance(holder, dict):
            for key in [key for key, value in list(holder.items()) if id(value) in ids]:
                if _is_namespace(holder):
                    holder[key] = None
                else:
                    del holder[key]
        elif isinstance(holder, tuple | list) and holder is not kept:
            holders.append(holder)
    return holders


def _is_namespace(names: dict[Any, Any]) -> bool:
    """Whether these are the attributes of an object, which are set rather than deleted."""
    return any(getattr(owner, "__dict__", None) is names for owner in gc.get_referrers(names))
