"""The configuration: what the search chose and what a deployed network needs to know. A JSON file, version 1.

    {"version": 1, "setting": "input-dependent", "model": ["features.3", ...],
     "exits": [{"exit": "1:fcn-r4-b0", "pixel_threshold": 0.9, "image_threshold": 0.83}, {"exit": "final"}],
     "policy": {"refine": true, "edges": "canny", "confidence": "top1"},
     "promise": {"accuracy": 0.61, "cost": 1.2e9, ...}}

`promise` is what the search expected on its own split; nothing in it changes how the network runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

from mess.exit_names import FINAL_EXIT
from mess.files import entries, entry, read_json, write_json
from mess.policy import PolicySettings
from mess_core import Metric, Setting

VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class ChosenExit:
    """One exit of a configuration.

    Attributes:
        exit: `<point>:<head>` or `final`.
        pixel_threshold, image_threshold: its gate; None where the exit is unconditional. An image threshold above 1
            never lets an image leave.
    """

    exit: str
    pixel_threshold: float | None = None
    image_threshold: float | None = None

    @property
    def is_gated(self) -> bool:
        """Whether an image may go on behind this exit."""
        return self.pixel_threshold is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class Configuration:
    """Exits in order of execution, with the gates of all but the last when input-dependent."""

    setting: Setting
    model: tuple[str, ...]
    exits: tuple[ChosenExit, ...]
    policy: PolicySettings = field(default_factory=PolicySettings)
    promise: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """ValueError naming the entry when the configuration contradicts itself."""
        if self.setting not in get_args(Setting):
            raise ValueError(f"setting: expected one of {get_args(Setting)}, got {self.setting!r}")
        if not self.exits or (self.setting == "budgeted" and len(self.exits) != 1):
            raise ValueError(f"exits: expected at least one, and one only when budgeted, got {len(self.exits)}")
        points = [self.point_of(chosen.exit) for chosen in self.exits]
        if any(a >= b for a, b in pairwise(points)) or points[-1] > len(self.model):
            raise ValueError(f"exits: expected increasing exit points 0..{len(self.model)}, got {points}")
        for position, chosen in enumerate(self.exits):
            is_gated = self.setting == "input-dependent" and position < len(self.exits) - 1
            given = (chosen.pixel_threshold, chosen.image_threshold)
            if any((value is not None) != is_gated for value in given):
                wanted = "both thresholds" if is_gated else "no threshold"
                raise ValueError(f"exits: expected {wanted} at {chosen.exit}, got {given}")
            if is_gated and not 0 <= float(given[0] or 0) <= 1:
                raise ValueError(f"pixel_threshold: expected a number in [0, 1] at {chosen.exit}, got {given[0]}")
            if is_gated and not 0 <= float(given[1] or 0) < math.inf:
                raise ValueError(f"image_threshold: expected a finite number >= 0 at {chosen.exit}, got {given[1]}")

    def decides_by(self, policy: PolicySettings) -> bool:
        """Whether its image confidences are computed so, or it needs none."""
        return self.setting != "input-dependent" or self.policy == policy

    def point_of(self, exit_name: str) -> int:
        """Index of an exit's point; the final exit's is the number of points."""
        if exit_name == FINAL_EXIT:
            return len(self.model)
        point = exit_name.partition(":")[0]
        if not point.isdigit():
            raise ValueError(f"exits: expected '<point>:<head>' or {FINAL_EXIT!r}, got {exit_name!r}")
        return int(point)

    def save(self, path: str | Path) -> None:
        """Write the JSON file, whole or not at all."""
        write_json(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Configuration:
        """Read and validate; errors name the file and the entry."""
        return cls.from_json(read_json(Path(path), "configuration"))

    def to_json(self) -> dict[str, Any]:
        """The JSON object of the file format."""
        exits = [{k: v for k, v in asdict(chosen).items() if v is not None} for chosen in self.exits]
        return {
            "version": VERSION,
            "setting": self.setting,
            "model": list(self.model),
            "exits": exits,
            "policy": asdict(self.policy),
            "promise": dict(self.promise),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Configuration:
        """The configuration of a JSON object.

        Raises:
            ValueError: another version, a missing or unknown entry, or a contradiction.
        """
        if not isinstance(value, Mapping):
            raise ValueError(f"configuration: expected a JSON object, got {type(value).__name__}")
        if value.get("version") != VERSION:
            raise ValueError(f"configuration: expected version {VERSION}, got {value.get('version')}")
        try:
            return cls(
                setting=entry(value, "setting", str, "a setting"),
                model=entries(value, "model", str, "module names"),
                exits=tuple(_chosen(chosen) for chosen in entries(value, "exits", dict, "exits")),
                policy=PolicySettings(**entry(value, "policy", dict, "a policy")),
                promise=_promise(entry(value, "promise", dict, "an object")),
            )
        except (TypeError, ValueError) as error:
            raise ValueError(f"configuration: an entry is missing, unknown or off: {error}") from None


def _chosen(value: Mapping[str, Any]) -> ChosenExit:
    entry(value, "exit", str, "the name of an exit")
    for name in value.keys() - {"exit"}:
        entry(value, name, (int, float), "a number")
    return ChosenExit(**value)


def _promise(value: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in value.keys() & {"accuracy", "last_accuracy", "cost"}:
        entry(value, name, (int, float), "a number")
    if "metric" in value and value["metric"] not in get_args(Metric):
        raise ValueError(f"metric: expected one of {get_args(Metric)}, got {str(value['metric'])[:60]!r}")
    return value


def describe(exits: Sequence[ChosenExit]) -> str:
    """One line for people: `0:fcn-r1-b0 (0.90, 0.83) -> final`."""
    parts = []
    for chosen in exits:
        gate = f" ({chosen.pixel_threshold:g}, {chosen.image_threshold:.4f})" if chosen.is_gated else ""
        parts.append(chosen.exit + gate)
    return " -> ".join(parts)
