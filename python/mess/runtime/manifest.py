"""The manifest of a deployment folder: `manifest.json`, version 1. All that a run needs beside the ONNX files.

{
 "format": "mess deployment", "version": 1,
 "setting": "input-dependent" | "anytime" | "budgeted",
 "classes": [names], "palette": [[r, g, b] for each],
 "input": {"size": [height, width], "size_step": null or a number, "mean": [3 numbers], "std": [3 numbers]},
 "policy": {"refine": true, "edges": "canny", "confidence": "top1"},
 "exits": [{"name": "1:fcn-r4-b0", "stage": file, "inputs": [names], "outputs": [names], "feature": name,
            "carried": [[name, whether the batch is its first dimension]],
            "head": file or null, "output_stride": 8, "pixel_threshold": 0.9, "image_threshold": 0.95}],
 "promise": what the search found on the split it saw, "facts": how costs were measured,
 "files": {file: {"sha256": hexadecimal, "bytes": count}}
}

Pixels are RGB, divided by 255, less mean, by std. `size` is what was calibrated; the files take it alone where
`size_step` is null or missing, else every height and width that is a multiple of it.

Stage i reads `inputs` (the first one `images` (B, 3, H, W) float32) and gives `outputs`; `feature` goes to the head
(input `feature`, output `logits`) or is the logits where there is none, `carried` to the next stage. Thresholds are
null where the exit is unconditional.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

from mess.files import colours, entries, entry, file_sha256, height_and_width, read_json
from mess_core import ConfidenceKind, EdgeKind, Setting

FILE = "manifest.json"
FORMAT = "mess deployment"
VERSION = 1
LARGEST_SIDE = 1 << 16
"""Of a picture, in pixels."""
LARGEST_AREA = 1 << 26
"""Of what a network of any size is loaded for, in pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageFiles:
    """One exit of a deployment; the fields are the manifest's."""

    name: str
    stage: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    feature: str
    carried: tuple[tuple[str, bool], ...]
    head: str | None
    output_stride: int
    pixel_threshold: float | None
    image_threshold: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a deployment folder holds; the fields are those of the file."""

    setting: Setting
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    size: tuple[int, int]
    size_step: int | None = None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    policy: Mapping[str, Any]
    exits: tuple[StageFiles, ...]
    promise: Mapping[str, Any]
    facts: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]

    @classmethod
    def load(cls, folder: str | Path) -> Manifest:
        """Read and check `folder/manifest.json`, and that every file it names is there, unaltered.

        Raises:
            FileNotFoundError: no manifest, or a file that it names is missing.
            ValueError: another format or version, an entry that is missing or off, or a file that was altered.
        """
        folder = Path(folder)
        path = folder / FILE
        value = read_json(path, "deployment")
        if value.get("format") != FORMAT or value.get("version") != VERSION:
            raise ValueError(
                f"deployment: {path}: expected format {FORMAT!r} version {VERSION}, got {value.get('format')!r} "
                f"version {value.get('version')!r}"
            )
        try:
            manifest = cls._from_json(value)
            manifest._check()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"deployment: {path}: an entry is missing or off: {error}") from None
        for name, facts in manifest.files.items():
            _check_file(folder / name, facts)
        return manifest

    def read(self, folder: Path, name: str) -> bytes:
        """What is in one of the files, which is checked again: the folder may have been replaced since `load`.

        Raises:
            OSError: it cannot be read.
            ValueError: it is not what the manifest says.
        """
        content = (folder / name).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if digest != self.files[name]["sha256"]:
            raise ValueError(
                f"deployment: {folder / name}: expected SHA-256 {self.files[name]['sha256']}, got {digest}; it was "
                "replaced while it was loaded"
            )
        return content

    def to_json(self) -> dict[str, Any]:
        """The JSON object of the file."""
        exits = [
            {
                **{key: getattr(entry, key) for key in ("name", "stage")},
                **{key: list(getattr(entry, key)) for key in ("inputs", "outputs")},
                "feature": entry.feature,
                "carried": [list(pair) for pair in entry.carried],
                **{key: getattr(entry, key) for key in ("head", "output_stride", "pixel_threshold", "image_threshold")},
            }
            for entry in self.exits
        ]
        return {
            "format": FORMAT,
            "version": VERSION,
            "setting": self.setting,
            "classes": list(self.classes),
            "palette": [list(colour) for colour in self.palette],
            "input": {
                "size": list(self.size),
                "size_step": self.size_step,
                "mean": list(self.mean),
                "std": list(self.std),
            },
            "policy": dict(self.policy),
            "exits": exits,
            "promise": dict(self.promise),
            "facts": dict(self.facts),
            "files": {name: dict(facts) for name, facts in self.files.items()},
        }

    @classmethod
    def _from_json(cls, value: Mapping[str, Any]) -> Manifest:
        given = entry(value, "input", dict, "size, mean and std")
        files = entry(value, "files", dict, "files by name")
        return cls(
            setting=entry(value, "setting", str, "a setting"),
            classes=entries(value, "classes", str, "names"),
            palette=colours(value, "palette"),
            size=height_and_width(given, "size"),
            size_step=None if given.get("size_step") is None else entry(given, "size_step", int, "pixels, or null"),
            mean=tuple(float(x) for x in entries(given, "mean", (int, float), "numbers")),
            std=tuple(float(x) for x in entries(given, "std", (int, float), "numbers")),
            policy=dict(entry(value, "policy", dict, "a policy")),
            exits=tuple(_stage_files(stage) for stage in entries(value, "exits", dict, "exits")),
            promise=dict(entry(value, "promise", dict, "an object")),
            facts=dict(entry(value, "facts", dict, "an object")),
            files={name: dict(entry(files, name, dict, "sha256 and bytes")) for name in files},
        )

    def _check(self) -> None:
        """ValueError where entries contradict each other."""
        _expect(self.setting in get_args(Setting), "setting", get_args(Setting), self.setting)
        _expect(len(self.classes) >= 2, "classes", "two or more", self.classes)
        colours = len(self.palette)
        _expect(colours in (0, len(self.classes)), "palette", f"none, or {len(self.classes)} colours", colours)
        in_range = all(1 <= side <= LARGEST_SIDE for side in self.size)
        _expect(in_range, "input.size", f"height and width in 1..{LARGEST_SIDE}", self.size)
        step = self.size_step
        _expect(step is None or 1 <= step <= 256, "input.size_step", "1..256, or null", step)
        area = self.size[0] * self.size[1]
        _expect(step is None or area <= LARGEST_AREA, "input.size", f"at most {LARGEST_AREA} pixels", self.size)
        _expect(step is None or not any(side % step for side in self.size), "input.size", f"steps of {step}", self.size)
        check_normalisation(self.mean, self.std)
        _expect(set(self.policy) == {"refine", "edges", "confidence"}, "policy", "its three entries", self.policy)
        _expect(self.policy["edges"] in get_args(EdgeKind), "policy.edges", get_args(EdgeKind), self.policy["edges"])
        _expect(isinstance(self.policy["refine"], bool), "policy.refine", "true or false", self.policy["refine"])
        kinds = get_args(ConfidenceKind)
        _expect(self.policy["confidence"] in kinds, "policy.confidence", kinds, self.policy["confidence"])
        _expect(len(self.exits) >= 1, "exits", "at least one", self.exits)
        names = [stage.name for stage in self.exits]
        _expect(len(set(names)) == len(names), "exits", "different names", names)
        known: tuple[str, ...] = ("images",)
        for position, stage in enumerate(self.exits):
            where = f"exits[{position}]"
            for file in (stage.stage, stage.head):
                _expect(file is None or file in self.files, where, "files that are listed", file)
            _expect(set(stage.inputs) <= set(known), f"{where}.inputs", f"some of {known}", stage.inputs)
            _expect(stage.feature != "images", f"{where}.feature", "what a stage gives", stage.feature)
            given = {stage.feature, *(name for name, _ in stage.carried)}
            _expect(given <= {*stage.outputs, *known}, f"{where}.outputs", f"{sorted(given)} among them", stage.outputs)
            known = tuple(name for name, _ in stage.carried)
            _expect(1 <= stage.output_stride <= 256, f"{where}.output_stride", "1..256", stage.output_stride)
            is_gated = self.setting == "input-dependent" and position + 1 < len(self.exits)
            both = (stage.pixel_threshold, stage.image_threshold)
            _expect(all((x is not None) == is_gated for x in both), where, "thresholds at gates and only there", both)
            if stage.pixel_threshold is not None:
                _expect(0 <= stage.pixel_threshold <= 1, f"{where}.pixel_threshold", "0..1", stage.pixel_threshold)
            if stage.image_threshold is not None:
                _expect(stage.image_threshold >= 0, f"{where}.image_threshold", "0 or more", stage.image_threshold)
        for name, facts in self.files.items():
            _expect(re.fullmatch(r"[\w-]+\.onnx", name) is not None, "files", "names like stage-0.onnx", name)
            _expect(set(facts) == {"sha256", "bytes"}, f"files.{name}", "sha256 and bytes", sorted(facts))


def check_normalisation(mean: Sequence[float], std: Sequence[float], channels: int = 3) -> None:
    """ValueError unless they are `channels` numbers each, in a range that leaves images finite."""
    _expect(len(mean) == len(std) == channels, "mean, std", f"{channels} numbers each", (tuple(mean), tuple(std)))
    _expect(all(1e-6 <= x <= 1e6 for x in std), "std", "numbers in 1e-6..1e6", tuple(std))
    _expect(all(abs(x) <= 1e6 for x in mean), "mean", "numbers in -1e6..1e6", tuple(mean))


def _expect(holds: bool, entry: str, expected: object, got: object) -> None:
    if not holds:
        raise ValueError(f"{entry}: expected {expected}, got {got!r}")


def _stage_files(value: Mapping[str, Any]) -> StageFiles:
    names = {field.name for field in fields(StageFiles)}
    _expect(set(value) == names, "exits", f"entries {sorted(names)}", sorted(value))

    def or_none(name: str, kind: type | tuple[type, ...], expected: str) -> Any:
        return None if value[name] is None else entry(value, name, kind, f"{expected}, or null")

    carried = entries(value, "carried", list, "[name, whether it has a batch]")
    _expect(all(list(map(type, pair)) == [str, bool] for pair in carried), "carried", "[name, true or false]", carried)
    return StageFiles(
        name=entry(value, "name", str, "a name"),
        stage=entry(value, "stage", str, "a file"),
        inputs=entries(value, "inputs", str, "names"),
        outputs=entries(value, "outputs", str, "names"),
        feature=entry(value, "feature", str, "a name"),
        carried=tuple((name, is_batched) for name, is_batched in carried),
        head=or_none("head", str, "a file"),
        output_stride=entry(value, "output_stride", int, "pixels"),
        pixel_threshold=or_none("pixel_threshold", (int, float), "a number"),
        image_threshold=or_none("image_threshold", (int, float), "a number"),
    )


def _check_file(path: Path, facts: Mapping[str, Any]) -> None:
    if path.is_symlink():
        raise FileNotFoundError(
            f"deployment: expected {path} to be a file, got a link, as caches and mounts have them; copy the folder "
            "without links (cp -rL)"
        )
    if not path.is_file():
        raise FileNotFoundError(f"deployment: expected the file {path}, which the manifest names, got none")
    size = path.stat().st_size
    if size != facts["bytes"]:
        raise ValueError(
            f"deployment: {path}: expected {facts['bytes']} bytes, got {size}; it was altered or truncated"
        )
    digest = file_sha256(path)
    if digest != facts["sha256"]:
        raise ValueError(f"deployment: {path}: expected SHA-256 {facts['sha256']}, got {digest}; it was altered")
