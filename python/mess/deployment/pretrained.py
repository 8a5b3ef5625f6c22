"""A trained network with its configurations as a folder to share, in the layout of the Hugging Face Hub.

config.json          what the network is made of, its classes, and the configurations by name
model.safetensors    the model's weights, and those of the heads that a configuration uses
README.md            model card: how to use it, and what was measured

config.json is `{"format": "mess pretrained", "version": 1, "model_type": "mess", "model": spec or "", "id2label":
{"0": name}, "palette": [[r, g, b]], "input": {"size": [height, width], "channels": 3, "mean": [...], "std": [...]},
"stages": [names], "configurations": {name: see `Configuration`}, "weights": {"sha256": hexadecimal}}`; the first
configuration is the default. Nothing in a folder is code, and none is run: a model of one's own is given as `net=`.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from mess.data.dataset import IMAGENET_MEAN, IMAGENET_STD
from mess.deployment.card import model_card
from mess.deployment.configuration import Configuration
from mess.deployment.network import DeployedNetwork, deploy
from mess.exit_names import FINAL_EXIT
from mess.files import (
    check_version,
    colours,
    entries,
    entry,
    expect_replaceable,
    file_sha256,
    height_and_width,
    palette_of,
    read_json,
    read_safetensors,
    whole_folder,
    write_json,
    write_safetensors,
    write_whole,
)
from mess.model.adapter import PickLogits
from mess.model.exits import AnyHead, HeadBuilder, HeadSpec, head_from
from mess.model.network import MultiExitNetwork, convert
from mess.model.weights import check_fits, untied
from mess.model.zoo import comes_from_a_library, model_from_spec
from mess.runtime.manifest import LARGEST_AREA, LARGEST_SIDE, check_normalisation

FORMAT = "mess pretrained"
VERSION = 1
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
LARGEST_VOLUME = 4 * LARGEST_AREA
"""Of the image that a model is converted with, in numbers: a folder of somebody else's could ask for all memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pretrained:
    """What `config.json` says; the fields are the file's.

    Attributes:
        model: see `mess.model.zoo.model_from_spec`; empty for a model that `from_pretrained` must be given.
        class_names: of the C classes.
        palette: a colour (r, g, b) a class, or none.
        size: (height, width) of the network's input, in pixels.
        channels: of the images.
        mean, std: what images are normalised with, of values in 0..1; empty where that is the caller's.
        stages: names of the stages that the user declared, if any.
        configurations: by name, the default first.
        sha256: of the weights' file, as hexadecimal digits.
    """

    model: str
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    stages: tuple[str, ...]
    configurations: Mapping[str, Configuration]
    sha256: str

    def __post_init__(self) -> None:
        points = {configuration.model for configuration in self.configurations.values()}
        if len(points) != 1:
            raise ValueError(f"configurations: expected at least one, all of one network, got {len(points)} networks")
        if len(self.class_names) < 2 or len(self.palette) not in (0, len(self.class_names)):
            raise ValueError(
                f"class_names: expected at least 2, and no palette or a colour each, got {len(self.class_names)} and "
                f"{len(self.palette)} colours"
            )

        if self.channels < 1:
            raise ValueError(f"channels: expected at least 1, got {self.channels}")
        if self.mean or self.std:
            check_normalisation(self.mean, self.std, self.channels)

    @property
    def points(self) -> tuple[str, ...]:
        """Names of the modules behind which exits are."""
        return next(iter(self.configurations.values())).model

    @property
    def exits(self) -> tuple[str, ...]:
        """The early exits, `<point>:<head>`, that a configuration uses."""
        used = {chosen.exit for configuration in self.configurations.values() for chosen in configuration.exits}
        return tuple(sorted(used - {FINAL_EXIT}))

    def configuration(self, name: str | None = None) -> Configuration:
        """One by name, or the default; ValueError lists them."""
        wanted = next(iter(self.configurations)) if name is None else name
        if wanted not in self.configurations:
            raise ValueError(f"configuration: expected one of {list(self.configurations)}, got {wanted!r}")
        return self.configurations[wanted]

    def to_json(self) -> dict[str, Any]:
        """The JSON object of the file."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "model_type": "mess",
            "model": self.model,
            "id2label": {str(index): name for index, name in enumerate(self.class_names)},
            "palette": [list(colour) for colour in self.palette],
            "input": {
                "size": list(self.size),
                "channels": self.channels,
                "mean": list(self.mean),
                "std": list(self.std),
            },
            "stages": list(self.stages),
            "configurations": {name: chosen.to_json() for name, chosen in self.configurations.items()},
            "weights": {"sha256": self.sha256},
        }

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read and check `folder/config.json`.

        Raises:
            FileNotFoundError: no such file.
            ValueError: another format or version, an entry that is missing or off.
        """
        path = Path(folder) / CONFIG
        value = read_json(path, "pretrained")
        if value.get("format") != FORMAT:
            raise ValueError(f"pretrained: {path}: expected format {FORMAT!r}, got {value.get('format')!r}")
        check_version(value, VERSION, "pretrained", path)
        try:
            labels, given = entry(value, "id2label", dict, "names by class"), entry(value, "input", dict, "an input")
            chosen = entry(value, "configurations", dict, "configurations by name")
            numbers = {name: entries(given, name, (int, float), "numbers") for name in ("mean", "std")}
            size, channels = height_and_width(given, "size"), entry(given, "channels", int, "a number of channels")
            if max(size) > LARGEST_SIDE or not 1 <= channels <= LARGEST_VOLUME // (size[0] * size[1]):
                raise ValueError(
                    f"input: expected sides of at most {LARGEST_SIDE} and at most {LARGEST_VOLUME} numbers an image, "
                    f"got {channels} channels of {size[0]} x {size[1]}"
                )
            return cls(
                model=entry(value, "model", str, "a model or nothing"),
                class_names=tuple(entry(labels, str(i), str, "a name for each class") for i in range(len(labels))),
                palette=colours(value, "palette"),
                size=size,
                channels=channels,
                mean=numbers["mean"],
                std=numbers["std"],
                stages=entries(value, "stages", str, "names"),
                configurations={
                    name: Configuration.from_json(entry(chosen, name, dict, "a configuration")) for name in chosen
                },
                sha256=entry(entry(value, "weights", dict, "facts of the weights"), "sha256", str, "a hash"),
            )
        except ValueError as error:
            raise ValueError(f"pretrained: {path}: {error}") from None


def save_pretrained(
    network: MultiExitNetwork,
    out: str | Path,
    configurations: Configuration | Mapping[str, Configuration],
    *,
    class_names: Sequence[str],
    palette: Sequence[Sequence[int]] = (),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    model: str = "",
    measured: Mapping[str, Any] | None = None,
    license: str = "",
    push_to_hub: str = "",
    private: bool = False,
) -> Pretrained:
    """Write a folder that `from_pretrained` reads, whole or not at all.

    Args:
        network: trained.
        out: a new folder, an empty one, or an earlier one of these, which is replaced.
        configurations: from `mess.search`; several by name, the default first.
        class_names: of the C classes, in order.
        palette: C colours (r, g, b), 0..255.
        mean, std: a number a channel that pixels, as values in 0..1, are normalised with; ImageNet's by default for
            three channels, and none for others.
        model: what the original model is, as on the command line (`torchvision:lraspp_mobilenet_v3_large`), so that
            `from_pretrained` needs no `net=`; empty for a model of one's own.
        measured: what `mess evaluate` wrote (`evaluation-test.json`), for the table in the model card.
        license: of the weights, in the Hub's words (`apache-2.0`); none is claimed without it.
        push_to_hub: `user/name` on the Hub, to upload the folder to when it is written; needs huggingface_hub. What is
            not there yet is made, for everybody to see unless its organisation has another default.
        private: make it for its owner alone, needs `push_to_hub`; a repository that is there stays as it is.

    Raises:
        TypeError: `network` is a deployed one.
        ValueError: `out` holds something else, or configurations, classes and network do not fit.
        RuntimeError: huggingface_hub is not installed and `push_to_hub` is given, or the Hub refuses it; the folder is
            written then.
    """
    if not isinstance(network, MultiExitNetwork):
        raise TypeError(f"network: expected a MultiExitNetwork, from mess.convert, got {type(network).__name__}")
    folder = Path(out)
    expect_replaceable(folder, CONFIG, FORMAT, lambda _: (WEIGHTS, CARD))
    if private and not push_to_hub:
        raise ValueError("private: expected push_to_hub beside it, got none")
    hub = _hub() if push_to_hub else None
    named = {"default": configurations} if isinstance(configurations, Configuration) else dict(configurations)
    if len(class_names) != network.num_classes:
        raise ValueError(f"class_names: expected {network.num_classes}, got {len(class_names)}")
    with whole_folder(folder, last=CONFIG) as temporary:
        shared = Pretrained(
            model=model,
            class_names=tuple(class_names),
            palette=palette_of(palette),
            size=network.workload.input_size,
            channels=network.in_channels,
            mean=tuple(mean if mean is not None else IMAGENET_MEAN if network.in_channels == 3 else ()),
            std=tuple(std if std is not None else IMAGENET_STD if network.in_channels == 3 else ()),
            stages=network.stages,
            configurations=named,
            sha256="",
        )
        modules = tuple(point.name for point in network.points)
        if shared.points != modules:
            raise ValueError(f"configurations: expected exit points {modules}, got {shared.points}")
        unknown = sorted(set(shared.exits) - {exit_id.name for exit_id in network.exits})
        if unknown:
            raise ValueError(f"configurations: expected exits of the network, got {unknown[0]!r}")
        state = {name: value.detach().cpu().contiguous() for name, value in _used(network, shared).items()}
        write_safetensors(temporary / WEIGHTS, untied(state), {"version": VERSION})
        digest = file_sha256(temporary / WEIGHTS)
        write_json(temporary / CONFIG, {**shared.to_json(), "weights": {"sha256": digest}})
        card = model_card(shared.configurations, model=model, size=shared.size, measured=measured, license=license)
        write_whole(temporary / CARD, lambda path: path.write_text(card, encoding="utf-8"))
        written = Pretrained.load(temporary)
    if hub is not None:
        files = sorted({CONFIG, WEIGHTS, CARD})
        try:
            hub.HfApi().create_repo(push_to_hub, exist_ok=True, private=True if private else None)
            hub.HfApi().upload_folder(repo_id=push_to_hub, folder_path=folder, allow_patterns=files)
        except Exception as error:  # the library's own kinds, and those of what it reaches the Hub by
            raise RuntimeError(f"push_to_hub: {push_to_hub}: {_one_line(error)}; {folder} is written") from error
    return written


def from_pretrained(
    name_or_folder: str | Path,
    net: nn.Module | None = None,
    *,
    configuration: str | None = None,
    heads: Sequence[AnyHead | HeadBuilder] = (),
    pick_logits: PickLogits | None = None,
    revision: str | None = None,
) -> DeployedNetwork:
    """The deployed network of a folder that `save_pretrained` wrote, on the CPU, with its `class_names`.

    Args:
        name_or_folder: the folder, or `user/name` on the Hugging Face Hub (needs huggingface_hub, which keeps a copy).
        net: the model itself, of any weights, where the folder does not say how to make it.
        configuration: name of one in the folder; the default is the first.
        heads: the user's own head functions that the network was converted with, if any.
        pick_logits: as in `mess.convert`.
        revision: of the Hub's repository: a commit, for weights that never change.

    Raises:
        FileNotFoundError: no such folder, or a file of it is missing.
        ValueError: a file was altered or is off, the model must be given, or it does not fit the weights.
        RuntimeError: the Hub is meant and huggingface_hub is not installed, or it has no such repository.
    """
    folder = _folder(name_or_folder, revision)
    shared = Pretrained.load(folder)
    chosen = shared.configuration(configuration)
    weights = folder / WEIGHTS
    if weights.is_file() and (digest := file_sha256(weights)) != shared.sha256:
        raise ValueError(f"pretrained: {weights}: expected the file of config.json, got another (SHA-256 {digest})")
    state, _ = read_safetensors(weights, "pretrained", framework="pt")
    if net is None:
        if not comes_from_a_library(shared.model):
            raise ValueError(
                f"net: expected the model, which {folder} does not say how to make ({shared.model or 'no name'}: "
                "code and other files are never loaded on a folder's word; mess run has --model)"
            )
        net = model_from_spec(shared.model, num_classes=len(shared.class_names))
    network = convert(
        net,
        torch.zeros(1, shared.channels, *shared.size),
        exit_points=shared.points,
        heads=_heads(shared, heads),
        pick_logits=pick_logits,
        stages=shared.stages,
    )
    if network.num_classes != len(shared.class_names):
        raise ValueError(f"net: expected logits of {len(shared.class_names)} classes, got {network.num_classes}")
    check_fits("pretrained", weights, _used(network, shared), state)
    network.load_state_dict(state, strict=False)
    deployed = deploy(network.eval(), chosen, mean=shared.mean or IMAGENET_MEAN, std=shared.std or IMAGENET_STD)
    deployed.class_names = shared.class_names
    return deployed


def _used(network: MultiExitNetwork, shared: Pretrained) -> dict[str, Tensor]:
    """The state of the model, and of the heads that a configuration uses."""
    kept = tuple(f"heads.{name.replace(':', '.')}." for name in shared.exits)
    return {name: value for name, value in network.state_dict().items() if name.startswith(("net.", *kept))}


def _heads(shared: Pretrained, given: Sequence[AnyHead | HeadBuilder]) -> list[AnyHead]:
    """Every head that a configuration uses, the user's own among `given`; at least one, which `convert` wants."""
    own = {head.name: head for head in map(head_from, given)}
    names = sorted({name.partition(":")[2] for name in shared.exits})
    found: list[AnyHead] = []
    for name in names:
        try:
            found.append(own[name] if name in own else HeadSpec.from_name(name))
        except ValueError:
            raise ValueError(f"heads: expected the function that builds {name!r}, got {sorted(own)}") from None
    return found or [HeadSpec()]


def _folder(name_or_folder: str | Path, revision: str | None) -> Path:
    folder = Path(name_or_folder)
    # ./shared and ../shared are no names
    if folder.exists() or not re.fullmatch(r"(?!\.{1,2}/)[\w.-]+/[\w.-]+", str(name_or_folder)):
        return folder
    files = [CONFIG, WEIGHTS, CARD]
    try:
        return Path(_hub().snapshot_download(str(name_or_folder), revision=revision, allow_patterns=files))
    except Exception as error:
        raise RuntimeError(f"pretrained: {name_or_folder}: no such folder, and {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    """What the Hub says, which is of several lines."""
    return " ".join(str(error).split())


def _hub() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise RuntimeError(f"the Hugging Face Hub needs the hub extra: pip install 'mess[hub]' ({error})") from None
