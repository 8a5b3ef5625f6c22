"""Training curves in TensorBoard (`pip install 'mess[tensorboard]'`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mess.training.loop import Log


@contextmanager
def tensorboard(folder: str | Path) -> Iterator[Log]:
    """Inside, a `log` for `mess.train` that writes event files to `folder`; a continued run writes on.

    Raises:
        RuntimeError: tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise RuntimeError(f"tensorboard: expected the package, got {error}; pip install 'mess[tensorboard]'") from None
    writer = SummaryWriter(str(folder))

    def log(step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name.replace(":", "."), value, step)

    try:
        yield log
    finally:
        writer.close()
