"""What each verb of the command line does to a run folder (`mess.runs`). `cli.py` only reads the arguments."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mess import runs
from mess.calibration.cluster import on_ray
from mess.calibration.collect import calibrate
from mess.calibration.table import CalibrationTable
from mess.data.pairs import decode
from mess.deployment.configuration import Configuration
from mess.deployment.export import export
from mess.deployment.measure import measure_deployed
from mess.deployment.network import DeployedNetwork, deploy
from mess.deployment.pretrained import CONFIG, Pretrained, from_pretrained, save_pretrained
from mess.deployment.run import RunResult
from mess.deployment.run import run as run_image
from mess.exit_names import FINAL_EXIT
from mess.files import EXITS_FILE, WEIGHTS, expect_file, file_sha256, files_in, read_json, write_json, write_whole
from mess.model.network import MultiExitNetwork, upsampled
from mess.model.zoo import comes_from_a_library, model_from_spec
from mess.policy import PolicySettings
from mess.progress import IS_FIRST_PROCESS, console, say
from mess.reporting import charts, figures, tables
from mess.reporting.report import write_report
from mess.reporting.samples import samples
from mess.runtime import Manifest
from mess.runtime.backends import BackendName
from mess.search_verb import is_of_weights, search_run, table_of
from mess.searching import evaluate, smaller_network
from mess.searching.request import STANDARD_TARGETS, Engine
from mess.searching.solve import metric_of
from mess.training.board import tensorboard
from mess.training.loop import train
from mess.training.settings import TrainSettings


def train_run(
    folder: Path,
    settings: runs.RunSettings,
    first: TrainSettings,
    second: TrainSettings,
    weights: Path | None = None,
    *,
    device: str = "auto",
    workers: int = 0,
    cache_views: int = 0,
    with_tensorboard: bool = False,
) -> MultiExitNetwork:
    """Convert and train; a second call with the same settings continues where the first one stopped.

    Args:
        device: as torch names it, or `auto` for a GPU where there is one; `torchrun` gives each process its own.
        workers: processes that read images ahead.
        cache_views: see `mess.train`.
        with_tensorboard: write curves to `folder/tensorboard`.

    Raises:
        ValueError: a device that is not there, or settings and data that are off.
    """
    place = _device(device)
    if weights is not None and weights.is_file():
        settings = replace(settings, weights=file_sha256(weights))
    settings = settings.described()
    _check_data(settings)
    batches = runs.loader(settings, split="train", train=True, workers=workers)
    network = runs.new_network(settings, weights=weights)
    settings.save(folder)
    if IS_FIRST_PROCESS:
        console.print(tables.points_table(network))
        try:
            network.split()  # warns when it will run one image at a time
        except RuntimeError as error:
            say(f"warning: this model can be trained, but not timed or deployed: {error}")
        charts.workload_figure(network, folder / "pictures" / "workload.png")
    network.to(place)
    with tensorboard(folder / "tensorboard") if with_tensorboard and IS_FIRST_PROCESS else nullcontext() as log:
        train(network, batches, pretraining=first, exits=second, out=folder, cache_views=cache_views, log=log)
    return network


def calibrate_run(
    folder: Path,
    *,
    split: str,
    policy: PolicySettings | None = None,
    latency_rounds: int = 15,
    backends: Sequence[BackendName] = (),
    device: str = "cpu",
    engine: Engine = "local",
    workers: int | None = None,
    threads: int | None = None,
) -> CalibrationTable:
    """Run every exit on a split and write `table-<split>.safetensors`.

    Interrupted, what is done is in `partial-<split>.safetensors`, and the same call goes on from there, with
    either engine.

    Args:
        backends: of an exported folder, that latency is measured in too.
        device: as torch names it; latency is that of this device.
        engine: `local` or `ray`, see `mess.calibration.cluster`; `workers` and `threads` are Ray's.
    """
    place = _device(device)
    if engine == "ray" and place.type != "cpu":
        raise ValueError(f"--device: expected cpu beside --engine ray, whose workers have no other, got {device}")
    if engine == "local" and (workers, threads) != (None, None):
        raise ValueError("--workers, --threads: expected --engine ray beside them")
    spread = on_ray(folder, split, workers=workers, threads=threads or 1) if engine == "ray" else None
    settings = runs.RunSettings.load(folder)
    network = runs.trained_network(folder).to(place)
    data = runs.dataset(settings, split=split)
    partial = folder / f"partial-{split}.safetensors"
    table = calibrate(
        network,
        runs.loader(settings, split=split),
        class_names=data.class_names,
        image_names=[data.identity(i) for i in range(len(data))],
        policy=policy,
        latency_rounds=latency_rounds,
        backends=backends,
        facts={"split": split, "data": data.name, WEIGHTS: file_sha256(folder / EXITS_FILE)},
        partial=partial,
        spread=spread,
    )
    table.save(folder / f"table-{split}.safetensors")
    partial.unlink(missing_ok=True)
    return table


def evaluate_run(folder: Path, *, split: str = "test", clock_images: int = 40, rounds: int = 3) -> dict[str, Any]:
    """Every configuration found, on a split that the search did not see; writes `evaluation-<split>.json`.

    Accuracy, MACs and shares come from the split's table, exactly; latency is measured by really running up to
    `clock_images` images through the plain model and the deployed network, interleaved.
    """
    settings = runs.RunSettings.load(folder)
    network = runs.trained_network(folder)
    found = configurations(folder)
    if (folder / f"table-{split}.safetensors").is_file():
        table = table_of(folder, split)
    else:
        first = next(iter(found.values()))
        table = calibrate_run(folder, split=split, policy=first.policy, device=_searched_device(folder, first))
    table.check_fits(network)
    batches = runs.loader(settings, split=split)
    images = [batches.example(i)[0][None] for i in _spread(len(table.images), clock_images)]
    final = table.exits.index(FINAL_EXIT)
    baseline = (table.mean_iou(final), table.total_cost(final, "macs"))
    result: dict[str, Any] = {
        "split": split,
        "images": len(table.images),
        "clock_images": len(images),
        "facts": table.facts,
        "original": {"mean_iou": baseline[0], "macs": baseline[1]},
        "configurations": {},
    }
    rows, answers = [], []
    plain_ms: float | None = None
    seen = [n for n, c in found.items() if split in (c.promise.get("split"), c.promise.get("searched_split"))]
    if seen:
        say(f"warning: {', '.join(seen)}: chosen on the {split} split itself, so too good to be true of others")
    for name, configuration in _of_policy(found, table.policy).items():
        report = evaluate(configuration, table)
        metric = metric_of(configuration)
        smaller = smaller_network(table, max_cost=report.cost, metric=metric)
        clock = measure_deployed(network, deploy(network, configuration), images, rounds=rounds)
        plain_ms = plain_ms or clock.plain_ms
        console.print(tables.configuration_table(name, configuration, table, report))
        accuracy = float(np.nanmean(report.iou))  # anytime: of the last prediction
        rows.append((name, accuracy, report.cost, clock.deployed_ms * plain_ms / clock.plain_ms))
        result["configurations"][name] = {
            "exits": [asdict(chosen) for chosen in configuration.exits],
            "promise": dict(configuration.promise),
            "mean_iou": accuracy,
            "metric": metric,
            "accuracy": report.accuracy,
            "macs": report.cost,
            "shares": report.shares,
            "iou": dict(zip(table.class_names, report.iou, strict=True)),
            "clock": asdict(clock),
            "smaller_network": tables.smaller_json(smaller),
        }
        if configuration.setting == "input-dependent":
            by = "" if metric == "mean-iou" else f" by {metric}, {report.accuracy:.2%}"
            answers.append(f"{name}{by}: {tables.smaller_text(report.accuracy, smaller, baseline[1])}")
    say("\n".join(answers))
    console.print(tables.summary_table(f"{split} split, {len(table.images)} images", rows, (*baseline, plain_ms)))
    write_json(folder / f"evaluation-{split}.json", result)
    return result


def _searched_device(folder: Path, configuration: Configuration) -> str:
    """Where the table was measured that the configuration was searched on, so that latencies are of one device."""
    split = str(configuration.promise.get("split"))
    measured = (folder / f"table-{split}.safetensors").is_file()
    device = str(table_of(folder, split).facts.get("device", "cpu")) if measured else "cpu"
    try:
        return str(_device(device))
    except ValueError:
        say(f"warning: the {split} split was measured on {device}, which is not here: latency is that of the CPU")
        return "cpu"


def _of_policy(found: Mapping[str, Configuration], policy: PolicySettings) -> dict[str, Configuration]:
    """Those whose image confidences are computed so, or that need none; ValueError when there is none."""
    fitting = {name: chosen for name, chosen in found.items() if chosen.decides_by(policy)}
    others = sorted(set(found) - set(fitting))
    why = f"searched with other confidences than {policy}; calibrate both splits alike and search again"
    if others and fitting:
        say(f"warning: left out: {', '.join(others)}: {why}")
    if not fitting:
        raise ValueError(f"configuration: expected one for these confidences, got {', '.join(others)}: {why}")
    return fitting


def run_images(
    folder: Path, paths: list[Path], *, configuration: str | None, out: Path, model: str = ""
) -> Iterator[tuple[Path, RunResult]]:
    """Segment image files; write `<stem>.png`, an indexed picture in the dataset's colours, for each, one by one.

    Args:
        folder: a run, or one that `share_run` wrote.
        configuration: name of one; `drop-1pp` of a run by default, or the only one, and the default of what is shared.
        model: how to make the model of a shared folder that does not say so, as `mess train` takes it.
    """
    targets = {path: out / f"{path.stem}.png" for path in paths}
    if len(set(targets.values())) < len(paths):
        raise ValueError(
            f"images: expected different names, which the results get in {out}, got {[p.name for p in paths]}"
        )
    overwritten = {path.resolve() for path in paths} & {target.resolve() for target in targets.values()}
    if overwritten:
        raise ValueError(
            f"out: expected another folder than the pictures', since {sorted(overwritten)[0]} would be lost"
        )
    if (folder / CONFIG).is_file() and not (folder / "run.json").is_file():
        shared = Pretrained.load(folder)
        net = model_from_spec(model, num_classes=len(shared.class_names)) if model else None
        palette, deployed = shared.palette, from_pretrained(folder, net, configuration=configuration)
    else:
        if model:
            raise ValueError(f"--model: expected none, as the run {folder} says how its model is made, got {model!r}")
        palette, deployed = runs.RunSettings.load(folder).palette, load_run(folder, configuration)
    colours = bytes(channel for colour in palette for channel in colour)
    for path in paths:
        result = run_image(deployed, decode(path, "RGB", upright=True))
        picture = Image.fromarray(result.labels.astype(np.uint8), mode="P")
        if colours:
            picture.putpalette(colours)
        _save_picture(picture, targets[path])
        yield path, result


def export_run(folder: Path, *, configuration: str | None, out: Path, any_size: bool = False) -> Manifest:
    """Write a configuration of the run as a deployment folder that needs no torch.

    Raises:
        RuntimeError: `any_size` and the model takes one size alone; says why.
    """
    settings = runs.RunSettings.load(folder)
    deployed = load_run(folder, configuration, any_size=any_size)
    split = deployed.configuration.promise.get("split") or "val"  # the table that it was found in
    path = folder / f"table-{split}.safetensors"
    facts = CalibrationTable.load(path).facts if path.is_file() else {}
    facts = facts if is_of_weights(folder, facts) else {}
    return export(deployed, out, class_names=settings.class_names, palette=settings.palette, facts=facts)


def share_run(
    folder: Path, *, names: list[str], out: Path, license: str = "", push_to_hub: str = "", private: bool = False
) -> Pretrained:
    """Write the network and its configurations as a folder in the Hugging Face Hub's layout (`mess.save_pretrained`).

    Args:
        names: configurations, the default first; all that were found, `drop-1pp` first, when there are none.
        license: of the weights, in the Hub's words.
        push_to_hub: `user/name` to upload it to, new ones for everybody to see unless `private`.
    """
    settings = runs.RunSettings.load(folder)
    found = configurations(folder)
    wanted = names or sorted(found, key=lambda name: name != "drop-1pp")
    if not set(wanted) <= found.keys():
        raise ValueError(f"configuration: expected some of {sorted(found)}, got {wanted}")
    there = {stem.removeprefix("evaluation-"): path for stem, path in files_in(folder, "evaluation-*.json").items()}
    there.pop("train", None)  # whose images the weights have seen
    evaluation = there.get("test") or next(iter(there.values()), None)  # data without a test split has another
    measured = None if evaluation is None else read_json(evaluation, "evaluation")
    if measured is not None:
        exits = {name: row["exits"] for name, row in measured["configurations"].items()}
        is_of_these = all(exits.get(name) == [asdict(chosen) for chosen in found[name].exits] for name in wanted)
        if not (is_of_these and is_of_weights(folder, measured["facts"])):
            raise ValueError(
                f"configuration: {evaluation} is not of {wanted} as they are now; run `mess evaluate {folder}` again, "
                "or choose among those that it evaluates (--configuration)"
            )
    if not comes_from_a_library(settings.model):
        say(
            f"note: the folder does not hold the code of {settings.model}: whoever loads it gives the model (net=, or "
            "mess run --model)"
        )
    return save_pretrained(
        runs.trained_network(folder),
        out,
        {name: found[name] for name in wanted},
        class_names=settings.class_names,
        palette=settings.palette,
        mean=settings.mean,
        std=settings.std,
        model=settings.model,
        measured=measured,
        license=license,
        push_to_hub=push_to_hub,
        private=private,
    )


def picture_run(folder: Path, *, configuration: str | None, split: str = "test", num_images: int = 4) -> list[Path]:
    """Predictions at consecutive exits, and confidence before and after refinement, from easy to hard images; the files
    written."""
    settings = runs.RunSettings.load(folder)
    network = runs.trained_network(folder)
    chosen = configuration_named(folder, configuration)
    deployed = deploy(network, chosen, mean=settings.mean, std=settings.std)
    data, batches = runs.dataset(settings, split=split), runs.loader(settings, split=split)
    order = _by_first_confidence(deployed, folder, split)
    picked = [order[i] for i in _spread(len(order), num_images)]
    examples = [batches.example(i) for i in picked]
    images, labels = torch.stack([e[0] for e in examples]), torch.stack([e[1] for e in examples])
    pictures = folder / "pictures"
    names = [data.identity(i) for i in picked]
    written = [pictures / "predictions.png"]
    figures.predictions_figure(deployed, images, labels, data.palette, written[0], names=names)
    first = chosen.exits[0]
    if first.exit != FINAL_EXIT:
        exit_id = next(e for e in network.exits if e.name == first.exit)
        middle = len(picked) // 2
        with torch.no_grad():
            _, features = network.features(images[middle : middle + 1])
            logits = upsampled(network.head(exit_id)(features[exit_id.point]), settings.size)[0]
        stride = network.points[exit_id.point].output_stride
        threshold = first.pixel_threshold if first.pixel_threshold is not None else 0.9
        written.append(pictures / "confidence.png")
        image = figures.picture(images[middle], settings.mean, settings.std)
        figures.confidence_figure(image, logits, stride, chosen.policy, threshold, written[1])
    return written


def report_run(folder: Path, out: Path, *, cost: str = "macs", num_samples: int = 1) -> Path:
    """Write one HTML file that opens offline: work, trade-off, thresholds to play with, sample images.

    Args:
        cost: column of the tables, as of `mess.search`.
        num_samples: images of each kind: easiest, hardest, wrongly left early.

    Raises:
        FileNotFoundError: no run folder, no table, or no configuration there.
        IsADirectoryError: `out` is a folder.
        RuntimeError: plotly is not installed.
    """
    expect_file(out)
    settings = runs.RunSettings.load(folder)
    paths = {split: folder / f"table-{split}.safetensors" for split in ("val", "test")}
    splits = {split: table_of(folder, split) for split, path in paths.items() if path.is_file()}
    if not splits:
        raise FileNotFoundError(f"report: expected {paths['val']}; run `mess calibrate {folder}` first")
    without = [split for split, table in splits.items() if cost not in table.costs]
    if len(without) == len(splits):
        known = sorted({column for table in splits.values() for column in table.costs})
        raise ValueError(f"cost: expected one of {known}, which were calibrated, got {cost!r}")
    for split in without:
        say(f"warning: the {split} split is left out: its table has no {cost}, see `mess calibrate --help`")
        del splits[split]
    named = {n: c for n, c in configurations(folder).items() if c.setting != "anytime" and _is_in(c, splits)}
    suffix = "" if cost == "macs" else f"-{cost}"
    path = folder / f"front{suffix}.json"
    front = (
        [Configuration.from_json(value) for value in json.loads(path.read_text(encoding="utf-8"))]
        if path.is_file()
        else []
    )
    if not named:
        policies = {str(table.policy) for table in splits.values()}
        unlike = "; the splits were calibrated with other policies: calibrate them alike" if len(policies) > 1 else ""
        what = f"report: expected configurations of the tables of {', '.join(splits)} in {folder}"
        raise FileNotFoundError(f"{what}; run `mess search` first{unlike}")
    network = runs.trained_network(folder)
    policy = next(iter(splits.values())).policy
    write_report(
        out,
        title=f"{settings.model} on {settings.data.partition(':')[0]}, {settings.size[0]} x {settings.size[1]}",
        network=network,
        tables=splits,
        named=named,
        front=[c for c in front if _is_in(c, splits) and is_of_weights(folder, c.promise)],
        cost=cost,
        samples=samples(network, settings, splits, list(named.values()), num_samples),
        palette=np.array(settings.palette, dtype=np.uint8),
        policy=policy,
    )
    return out


def _is_in(configuration: Configuration, splits: Mapping[str, CalibrationTable]) -> bool:
    """Whether all tables have its exits and thresholds; what an earlier calibration left may not be there."""
    return all(
        configuration.model == table.model
        and {chosen.exit for chosen in configuration.exits} <= set(table.exits)
        and {chosen.pixel_threshold for chosen in configuration.exits} <= {None, *table.pixel_thresholds}
        and configuration.decides_by(table.policy)
        for table in splits.values()
    )


def configurations(folder: Path) -> dict[str, Configuration]:
    """The configurations that `search_run` left, by name, standard targets first; not those of other weights."""
    found = _all_configurations(folder)
    fitting = {name: chosen for name, chosen in found.items() if is_of_weights(folder, chosen.promise)}
    if others := ", ".join(name for name in found if name not in fitting):
        if not fitting:
            raise ValueError(f"configuration: {others}: {_of_other_weights(folder)}")
        say(f"warning: left out: {others}: {_of_other_weights(folder)}")
    return fitting


def _of_other_weights(folder: Path) -> str:
    return f"searched with other weights than {folder} has now; run `mess calibrate` and `mess search` again"


def _all_configurations(folder: Path) -> dict[str, Configuration]:
    paths = files_in(folder / "configurations", "*.json")
    if not paths:
        raise FileNotFoundError(f"configuration: {folder / 'configurations'} holds none; run `mess search` first")
    names = [n for n in STANDARD_TARGETS if n in paths] + [n for n in paths if n not in STANDARD_TARGETS]
    return {name: Configuration.load(paths[name]) for name in names}


def configuration_named(folder: Path, name: str | None) -> Configuration:
    """A configuration of the run by name, or any configuration file by path; by default `drop-1pp`, or the
    only one, or the only `drop-1pp` with limits."""
    is_file = name is not None and Path(name).is_file()
    found = {str(name): Configuration.load(str(name))} if is_file else _all_configurations(folder)
    limited = [other for other in found if other.startswith("drop-1pp-")]
    usual = limited[0] if "drop-1pp" not in found and len(limited) == 1 else "drop-1pp"
    wanted = name or (next(iter(found)) if len(found) == 1 else usual)
    if wanted not in found:
        raise ValueError(f"--configuration: expected one of {sorted(found)} or a file, got {wanted!r}")
    if not is_of_weights(folder, found[wanted].promise):
        raise ValueError(f"configuration: {wanted}: {_of_other_weights(folder)}")
    return found[wanted]


def load_run(folder: str | Path, configuration: str | None = None, *, any_size: bool = False) -> DeployedNetwork:
    """The deployed network of a run folder, in eval mode on the CPU, with its `class_names`, `mean` and `std`.

    Args:
        folder: a run that `mess search` found configurations for.
        configuration: name of one, or a configuration file; by default `drop-1pp`, or the only one.
        any_size: for images of other sizes too; see `mess.deploy`.

    Raises:
        FileNotFoundError: no run there, or one without weights or configurations.
        ValueError: there is no such configuration, or it is of another network.
    """
    settings = runs.RunSettings.load(Path(folder))
    chosen = configuration_named(Path(folder), configuration)
    network = runs.trained_network(Path(folder))
    deployed = deploy(network, chosen, any_size=any_size, mean=settings.mean, std=settings.std)
    deployed.class_names = settings.class_names
    return deployed


def demo(out: str | Path = "demo-run", *, seed: int = 0) -> dict[str, Any]:
    """The whole job on drawn scenes: convert, train, calibrate, search, evaluate, deploy, draw. About three minutes.

    Returns:
        What `evaluate_run` returns; pictures are under `out/pictures`, and `out/report.html` where plotly is installed.
    """
    folder = Path(out)
    settings = runs.RunSettings(
        model="small_resnet_fcn", data="scenes", size=(96, 128), num_exits=6, heads="tiny", batch_size=8, seed=seed
    )
    first = TrainSettings(epochs=10, learning_rate=2e-3, loss_stride=2, seed=seed)
    second = TrainSettings(epochs=5, learning_rate=2e-3, loss_stride=2, seed=seed)
    train_run(folder, settings, first, second)
    calibrate_run(folder, split="val")
    search_run(folder)
    result = evaluate_run(folder, split="test")
    picture_run(folder, configuration="drop-1pp")
    say(f"pictures: {folder / 'pictures'}")
    if find_spec("plotly") is not None:
        say(f"report: {report_run(folder, folder / 'report.html')}")
    return result


def _device(name: str) -> torch.device:
    """A device that is there; of several processes, each has its own, or all have the CPU."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))
    try:
        enough = torch.cuda.is_available() and torch.cuda.device_count() >= processes  # `launcher` warns
        device = torch.device(("cuda" if enough else "cpu") if name == "auto" else name)
        if device == torch.device("cuda") and processes > 1:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch's ways of saying so
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"--device: expected one that is there, or auto, got {name!r} ({reason})") from None
    return device


def _check_data(settings: runs.RunSettings) -> None:
    """Look at every training and validation pair before hours are spent; all problems at once."""
    problems = runs.dataset(settings, split="train").check()
    try:
        problems += runs.dataset(settings, split="val").check()
    except FileNotFoundError as error:
        say(f"warning: `mess calibrate` will need a labelled split that is not trained on: {error}")
    if problems:
        more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise ValueError(f"data: {len(problems)} problems:\n  " + "\n  ".join(problems[:20]) + more)


def _save_picture(picture: Image.Image, path: Path) -> None:
    write_whole(path, lambda temporary: picture.save(temporary, format="PNG"))


def _spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` indices, evenly spaced over 0..count-1."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, wanted))})


def _by_first_confidence(deployed: DeployedNetwork, folder: Path, split: str) -> list[int]:
    """Image indices of a split, most confident first by the configuration's first gate (as they are without a gate)."""
    table = table_of(folder, split)
    first = deployed.configuration.exits[0]
    if first.pixel_threshold is None:
        return list(range(len(table.images)))
    values = table.image_confidence[table.exits.index(first.exit), table.pixel_thresholds.index(first.pixel_threshold)]
    return [int(i) for i in np.argsort(-values, kind="stable")]
