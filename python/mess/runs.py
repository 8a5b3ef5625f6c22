"""A run folder: everything one job leaves behind, so that each verb needs only the folder's name.

run.json                what was asked: model, data, size, heads, seeds
pretrain.safetensors    checkpoint of stage 1
exits.safetensors       checkpoint of stage 2: the trained multi-exit network
table-<split>.safetensors   calibration tables; partial-<split>.safetensors while one is made
configurations/         what the search found, one file a configuration; front.json is the whole trade-off
evaluation-<split>.json what `mess evaluate` measured
pictures/               figures
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch

from mess.data import SeededLoader, SegmentationDataset, dataset_from_spec
from mess.data.dataset import IMAGENET_MEAN, IMAGENET_STD
from mess.files import (
    EXITS_FILE,
    colours,
    differences,
    entries,
    entry,
    expect_run,
    height_and_width,
    read_json,
    write_json,
)
from mess.model.exits import HeadSpec, head_grid
from mess.model.network import MultiExitNetwork, convert
from mess.model.zoo import model_from_spec
from mess.runtime.manifest import check_normalisation
from mess.training.checkpoint import load_checkpoint


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSettings:
    """What a run is about; written to `run.json`.

    Attributes:
        model: see `mess.model.zoo.model_from_spec`.
        data: see `mess.data.dataset_from_spec`.
        size: (height, width) in pixels that images are brought to.
        num_exits: exits wanted, the final one included.
        exit_points: names of modules to exit behind instead; none for points chosen by workload.
        heads: a grid's name, or names of heads joined by commas (`fcn-r1-b0,fcn-r4-b0`).
        batch_size: images a training batch.
        seed: of heads, order and augmentation.
        weights: SHA-256 of the file that training started from; empty when there was none.
        mean, std: three numbers each that pixels, as values in 0..1, are normalised with.
        class_names, palette: of the data, so that the run can be used where the data is not; see `described`.
    """

    model: str
    data: str
    size: tuple[int, int]
    num_exits: int = 6
    heads: str = "small"
    batch_size: int = 8
    seed: int = 0
    weights: str = ""
    exit_points: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        check_normalisation(self.mean, self.std)

    def described(self) -> RunSettings:
        """With the class names and the palette of the data."""
        data = dataset(self, split="train")
        palette = tuple((int(r), int(g), int(b)) for r, g, b in data.palette)
        return replace(self, class_names=data.class_names, palette=palette)

    def save(self, folder: Path) -> None:
        """Write `run.json`; refuse when the folder already holds another run."""
        path = folder / "run.json"
        if path.is_file() and RunSettings.load(folder) != self:
            changed = differences(asdict(RunSettings.load(folder)), asdict(self))
            raise ValueError(f"out: {folder} holds another run: {changed}; choose another folder")
        write_json(path, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> RunSettings:
        """Read `run.json` of a folder; errors name it."""
        expect_run(folder)
        value = read_json(folder / "run.json", "run")
        known = {field.name for field in fields(cls)}
        if set(value) - known or not {"model", "data", "size"} <= set(value):
            raise ValueError(f"run: {folder / 'run.json'}: expected the fields {sorted(known)}, got {sorted(value)}")
        kinds: dict[str, tuple[type, str]] = dict.fromkeys(("model", "data", "heads", "weights"), (str, "text"))
        kinds |= dict.fromkeys(("num_exits", "batch_size", "seed"), (int, "an integer"))
        try:
            given = {name: entry(value, name, *kind) for name, kind in kinds.items() if name in value}
            for name in ("exit_points", "class_names"):
                if name in value:
                    given[name] = entries(value, name, str, "names")
            for name in ("mean", "std"):
                if name in value:
                    given[name] = entries(value, name, (int, float), "numbers")
            if "palette" in value:
                given["palette"] = colours(value, "palette")
            return cls(size=height_and_width(value, "size"), **given)
        except ValueError as error:
            raise ValueError(f"run: {folder / 'run.json'}: {error}") from None


def head_specs(heads: str) -> tuple[HeadSpec, ...]:
    """A grid by name (`full`, `small`, `tiny`), or heads by their names joined by commas."""
    if heads in ("full", "small", "tiny"):
        return head_grid(heads)  # type: ignore[arg-type]
    return tuple(HeadSpec.from_name(name.strip()) for name in heads.split(","))


def new_network(settings: RunSettings, *, weights: str | Path | None = None) -> MultiExitNetwork:
    """The untrained multi-exit network of a run."""
    num_classes = len((settings if settings.class_names else settings.described()).class_names)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.seed)  # torch.manual_seed would seed those of the GPUs too
        net = model_from_spec(settings.model, num_classes=num_classes, weights=weights)
    network = convert(
        net,
        torch.zeros(1, 3, *settings.size),
        num_exits=settings.num_exits,
        exit_points=settings.exit_points or None,
        heads=head_specs(settings.heads),
        seed=settings.seed,
    )
    if network.num_classes != num_classes:
        raise ValueError(
            f"model: expected logits of {num_classes} classes, those of the data, got {network.num_classes} from "
            f"{settings.model}; a function that takes num_classes is told"
        )
    return network


def trained_network(folder: Path) -> MultiExitNetwork:
    """The network of a run with the weights that `mess train` left, in eval mode."""
    if not (folder / EXITS_FILE).is_file():
        RunSettings.load(folder)  # says what is wrong with a folder that is no run
        raise FileNotFoundError(
            f"run: {folder / EXITS_FILE} is not there yet; `mess train` with the same --out goes on"
        )
    network = new_network(RunSettings.load(folder))
    done = load_checkpoint(folder / EXITS_FILE, network)
    trained, points = done.settings.get("points"), [point.name for point in network.points]
    if trained != points:
        raise ValueError(
            f"run: {folder / EXITS_FILE} has heads for {trained}, and exits of {RunSettings.load(folder).model} are at "
            f"{points} now: the model is another, or counted otherwise; train again"
        )
    wanted = done.settings.get("epochs", 0)
    if isinstance(wanted, int) and done.epoch < wanted:
        warnings.warn(
            f"run: {folder / EXITS_FILE} holds {done.epoch} of {wanted} epochs; `mess train` goes on", stacklevel=2
        )
    return network.eval()


def dataset(settings: RunSettings, *, split: str) -> SegmentationDataset:
    """One split of a run's data."""
    return dataset_from_spec(settings.data, split=split)


def loader(settings: RunSettings, *, split: str, train: bool = False, workers: int = 0) -> SeededLoader:
    """Batches of one split at the run's size; augmented and shuffled for training."""
    return SeededLoader(
        dataset(settings, split=split),
        batch_size=settings.batch_size,
        size=settings.size,
        train=train,
        seed=settings.seed,
        workers=workers,
        mean=settings.mean,
        std=settings.std,
    )
