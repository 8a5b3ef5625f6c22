"""Which early exits train with the final one on a batch of stage 1."""

from __future__ import annotations

from typing import Literal, get_args

Schedule = Literal["round_robin", "divisor", "all", "final"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)


def active_exits(schedule: Schedule, batch: int, num_early: int) -> tuple[int, ...]:
    """Indices (from 0) of the early exits that batch number `batch` (from 1) trains.

    `round_robin`: one exit in rotation, as the authors' prose says. `divisor`: the formula as printed,
    sum over i < N of 1(j mod i = 0) CE(y_i, t), so exit 1 fires on every batch and several may fire at once. The other
    two are what exit-aware training is compared with: `all` trains every exit on every batch (end to end), `final` the
    final exit alone (plain training).

    >>> [active_exits("round_robin", j, 3) for j in (1, 2, 3, 4)]
    [(0,), (1,), (2,), (0,)]
    >>> [active_exits("divisor", j, 3) for j in (1, 2, 3, 6)]
    [(0,), (0, 1), (0, 2), (0, 1, 2)]
    """
    if batch < 1:
        raise ValueError(f"batch: expected a count from 1, got {batch}")
    if schedule == "round_robin":
        return ((batch - 1) % num_early,)
    if schedule == "divisor":
        return tuple(i - 1 for i in range(1, num_early + 1) if batch % i == 0)
    if schedule == "all":
        return tuple(range(num_early))
    if schedule == "final":
        return ()
    raise ValueError(f"schedule: expected one of {SCHEDULES}, got {schedule!r}")
