"""The verbs on the command line. Each only reads its arguments; what it does is in `mess.verbs` and `mess.search_verb`.

Imports of torch happen inside the verbs, so that `--help` is quick.
"""

from __future__ import annotations

import difflib
import io
import sys
import tomllib
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, TextIO, cast, get_args

import typer

from mess.files import files_in, json_text

app = typer.Typer(
    name="mess",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def words(*known: str) -> Callable[[], list[str]]:
    """What the shell completes an option with; what is typed is checked where it is used, in one line."""
    return lambda: list(known)


def found_there(context: typer.Context) -> list[str]:
    """The configurations of the run that was typed before; an unfinished line leaves it in `args`."""
    folders = [Path(typed) / "configurations" for typed in (context.params.get("run"), *context.args) if typed]
    return sorted(name for folder in folders for name in files_in(folder, "*.json"))


ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        help="mobilenet_v2_fcn[:OUTPUT_STRIDE], small_resnet_fcn, torchvision:NAME, smp:ARCHITECTURE/ENCODER, hf:TYPE, "
        "or your own module.py:factory (or package.module:factory), given num_classes= if it takes that",
    ),
]
ExitPointsOption = Annotated[
    str, typer.Option(help="names of modules to exit behind, joined by commas, instead of --num-exits by workload")
]
SizeOption = Annotated[str, typer.Option("--size", metavar="HxW", help="height x width, such as 240x320")]
CostOption = Annotated[
    str,
    typer.Option(
        help="macs, latency, onnxruntime, openvino or size, if calibrated",
        autocompletion=words("macs", "latency", "onnxruntime", "openvino", "size"),
    ),
]
RunArgument = Annotated[Path, typer.Argument(help="run folder, made by `mess train --out`", show_default=False)]


def json_alone(context: typer.Context, as_json: bool) -> bool:
    """A verb that prints JSON has standard output for it alone: what else it says goes to standard error."""
    from mess.progress import console

    console.stderr = as_json
    context.call_on_close(lambda: setattr(console, "stderr", False))
    return as_json


JsonOption = Annotated[bool, typer.Option("--json", help="print JSON instead of a table", callback=json_alone)]
ConfigurationOption = Annotated[
    str | None,
    typer.Option(
        help="name in RUN/configurations, or a file; by default drop-1pp, or the only one", autocompletion=found_there
    ),
]
EngineOption = Annotated[
    str,
    typer.Option(
        help="local, or ray: workers on a cluster (RAY_ADDRESS), or on this machine without one",
        autocompletion=words("local", "ray"),
    ),
]
WorkersOption = Annotated[int | None, typer.Option(help="of --engine ray; as many as there is room for by default")]
EdgesOption = Annotated[
    str, typer.Option(help="label boundaries: canny or labels", autocompletion=words("canny", "labels"))
]


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="print version, commit, SIMD level and threads")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show where in the code an error came from")] = False,
    config: Annotated[
        Path | None, typer.Option(help="TOML file: a table a verb, an entry a flag, as in [train] num-exits = 4")
    ] = None,
) -> None:
    """Make a segmentation model cheaper: easy images leave it early.

    A job is a run folder and one verb on it after the other: train, calibrate, search, evaluate; then picture it, or
    run it on your own pictures. `mess demo` does all of them on drawn scenes; `mess profile` only looks at a model.
    """
    if version:
        import mess_core

        info = mess_core.build_info()
        typer.echo(
            f"mess {info['version']} (commit {info['commit'] or 'unknown'}, {info['target']}, "
            f"{info['instruction_set']}, {info['threads']} threads)"
        )
        raise typer.Exit
    if config is not None:
        context.default_map = _configured(config, context)


@app.command()
def profile(
    model: ModelOption,
    shape: Annotated[str, typer.Option("--input", metavar="CxHxW", help="one image, such as 3x520x520")] = "3x512x512",
    classes: Annotated[int, typer.Option(help="number of classes")] = 21,
    num_exits: Annotated[int, typer.Option(help="exits, the final one included")] = 6,
    exit_points: ExitPointsOption = "",
    cost: Annotated[
        str, typer.Option(help="macs (counted) or latency (measured)", autocompletion=words("macs", "latency"))
    ] = "macs",
    depth: Annotated[int, typer.Option(help="list modules nested up to so deep")] = 2,
    picture: Annotated[Path, typer.Option(help="PNG file for the picture of the workload")] = Path("workload.png"),
    as_json: JsonOption = False,
) -> None:
    """Show where a model spends its work, and where exits would go. Nothing is trained."""
    import torch

    from mess.model.cost import CostKind
    from mess.model.network import convert
    from mess.model.zoo import model_from_spec
    from mess.progress import console, say
    from mess.searching.request import choice

    size = _shape(shape)
    kind: CostKind = choice("cost", cost, ("macs", "latency"))
    net = model_from_spec(model, num_classes=classes)
    named = _names(exit_points) or None
    network = convert(
        net, torch.zeros(1, *size), num_exits=num_exits, exit_points=named, heads=["fcn-r1-b0"], cost=kind
    )
    if as_json:
        total = {"total": network.workload.total, "unit": network.workload.unit}
        typer.echo(json_text({**total, "points": [asdict(point) for point in network.points]}))
        return
    from mess.reporting.charts import workload_figure
    from mess.reporting.tables import layers_table, points_table

    console.print(layers_table(network, depth))
    console.print(points_table(network))
    workload_figure(network, picture)
    say(f"picture: {picture}")


@app.command()
def train(
    model: ModelOption,
    data: Annotated[
        str,
        typer.Option(
            help="scenes[:COUNT] (drawn), or PATH after folder:, camvid:, voc:, cityscapes:, ade20k: or coco:"
        ),
    ],
    size: SizeOption,
    out: Annotated[Path, typer.Option(help="run folder; calling again with the same settings resumes")],
    weights: Annotated[Path | None, typer.Option(help="safetensors file to start from")] = None,
    num_exits: Annotated[int, typer.Option(help="exits, the final one included")] = 6,
    exit_points: ExitPointsOption = "",
    heads: Annotated[str, typer.Option(help="full, small, tiny, or names such as fcn-r1-b0,fcn-r4-b1-d")] = "small",
    epochs: Annotated[int, typer.Option(help="epochs of stage 1 (backbone and exits)")] = 30,
    exit_epochs: Annotated[int, typer.Option(help="epochs of stage 2 (all heads, frozen backbone)")] = 10,
    learning_rate: Annotated[float, typer.Option(help="peak rate of stage 1")] = 1e-3,
    exit_learning_rate: Annotated[float, typer.Option(help="peak rate of stage 2")] = 1e-3,
    batch_size: Annotated[int, typer.Option(help="images a batch")] = 8,
    mean: Annotated[
        str, typer.Option(metavar="R,G,B", help="of the pixels, as values in 0..1; ImageNet's by default")
    ] = "",
    std: Annotated[str, typer.Option(metavar="R,G,B", help="deviation of the pixels, as --mean")] = "",
    schedule: Annotated[
        str,
        typer.Option(
            help="stage 1: round_robin, divisor (the printed formula), all or final",
            autocompletion=words("round_robin", "divisor", "all", "final"),
        ),
    ] = "round_robin",
    loss: Annotated[str, typer.Option(help="stage 2: pfd, kd or ce", autocompletion=words("pfd", "kd", "ce"))] = "pfd",
    loss_stride: Annotated[int, typer.Option(help="compare every n-th pixel in both directions")] = 1,
    precision: Annotated[
        str,
        typer.Option(
            help="float32, bfloat16 or float16 (CUDA)", autocompletion=words("float32", "bfloat16", "float16")
        ),
    ] = "float32",
    accumulate: Annotated[int, typer.Option(help="batches that make one step")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps ...; auto: a GPU where there is one")] = "auto",
    workers: Annotated[int, typer.Option(help="processes that read images ahead")] = 0,
    cache_views: Annotated[
        int, typer.Option(help="stage 2: keep the backbone's features of so many epochs in OUT/features; 0: none")
    ] = 0,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="write curves to OUT/tensorboard")] = False,
    seed: Annotated[int, typer.Option(help="of everything random")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Convert a model, train it with its exits (stage 1), then every candidate head (stage 2).

    On several GPUs or machines: torchrun --nproc-per-node N -m mess train ...; --batch-size is of one process.
    """
    from mess import runs, verbs
    from mess.data.dataset import IMAGENET_MEAN, IMAGENET_STD
    from mess.progress import IS_FIRST_PROCESS
    from mess.searching.request import choice
    from mess.training.settings import TrainSettings

    settings = runs.RunSettings(
        model=model,
        data=data,
        size=_size(size),
        num_exits=num_exits,
        exit_points=_names(exit_points),
        heads=heads,
        batch_size=batch_size,
        seed=seed,
        mean=_numbers("--mean", mean) or IMAGENET_MEAN,
        std=_numbers("--std", std) or IMAGENET_STD,
    )
    first = TrainSettings(
        epochs=epochs,
        learning_rate=learning_rate,
        schedule=choice("schedule", schedule, ("round_robin", "divisor", "all", "final")),
        loss_stride=loss_stride,
        precision=choice("precision", precision, ("float32", "bfloat16", "float16")),
        accumulate=accumulate,
        seed=seed,
    )
    second = replace(
        first, epochs=exit_epochs, learning_rate=exit_learning_rate, loss=choice("loss", loss, ("pfd", "kd", "ce"))
    )
    network = verbs.train_run(
        out,
        settings,
        first,
        second,
        weights,
        device=device,
        workers=workers,
        cache_views=cache_views,
        with_tensorboard=tensorboard,
    )
    if as_json and IS_FIRST_PROCESS:
        points = [asdict(point) for point in network.points]
        typer.echo(json_text({"run": str(out), "points": points, "exits": [e.name for e in network.exits]}))


@app.command()
def calibrate(
    run: RunArgument,
    split: Annotated[str, typer.Option(help="labelled split; use one that was not trained on")] = "val",
    edges: EdgesOption = "canny",
    refine: Annotated[bool, typer.Option(help="median-refine confidences near boundaries")] = True,
    confidence: Annotated[
        str, typer.Option(help="top1, margin or entropy", autocompletion=words("top1", "margin", "entropy"))
    ] = "top1",
    latency_rounds: Annotated[int, typer.Option(help="rounds of the latency measurement; 0 skips it")] = 15,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            help="time and weigh exported parts too, onnxruntime or openvino, for search --cost; repeatable",
            autocompletion=words("onnxruntime", "openvino"),
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, cuda:1, mps ...; the one that you deploy on, as latency is measured there")
    ] = "cpu",
    engine: EngineOption = "local",
    workers: WorkersOption = None,
    threads: Annotated[int | None, typer.Option(help="cores of each worker of --engine ray; 1 by default")] = None,
    as_json: JsonOption = False,
) -> None:
    """Run every exit on a split once, and keep counts, confidences and costs for the search."""
    from mess import verbs
    from mess.policy import PolicySettings
    from mess.progress import say
    from mess.runtime.backends import BackendName
    from mess.searching.request import choice

    policy = PolicySettings(
        refine=refine,
        edges=choice("edges", edges, ("canny", "labels")),
        confidence=choice("confidence", confidence, ("top1", "margin", "entropy")),
    )
    table = verbs.calibrate_run(
        run,
        split=split,
        policy=policy,
        latency_rounds=latency_rounds,
        backends=[choice("backend", name, get_args(BackendName)) for name in dict.fromkeys(backend or ())],
        device=device,
        engine=choice("engine", engine, ("local", "ray")),
        workers=workers,
        threads=threads,
    )
    if as_json:
        accuracy = {name: table.mean_iou(i) for i, name in enumerate(table.exits)}
        typer.echo(json_text({"images": len(table.images), "mean_iou": accuracy, "facts": table.facts}))
        return
    final = len(table.exits) - 1
    best = max(range(final), key=table.mean_iou)
    say(
        f"{len(table.images)} images, {len(table.exits)} exits; final exit {table.mean_iou(final):.2%} mIoU, "
        f"best early exit {table.exits[best]} {table.mean_iou(best):.2%}"
    )
    for column in table.costs:
        plain = table.facts.get(f"plain_{column}")
        if plain is not None:
            cut = table.total_cost(final, column)
            say(f"{column}: {plain:.4g} in one piece, {cut / plain:.2f} times that in {len(table.model) + 1} stages")


@app.command()
def search(
    run: Annotated[Path, typer.Argument(metavar="RUN|TABLE", help="run folder, or a calibration table file")],
    split: Annotated[str, typer.Option(help="split whose calibration table is searched")] = "val",
    setting: Annotated[
        str,
        typer.Option(
            help="input-dependent, budgeted or anytime",
            autocompletion=words("input-dependent", "budgeted", "anytime"),
        ),
    ] = "input-dependent",
    min_cost: Annotated[bool, typer.Option("--min-cost", help="cheapest at --accuracy-drop or --min-accuracy")] = False,
    max_accuracy: Annotated[bool, typer.Option("--max-accuracy", help="most accurate at --budget")] = False,
    front: Annotated[bool, typer.Option("--front", help="the whole trade-off and nothing else")] = False,
    accuracy_drop: Annotated[
        float | None,
        typer.Option("--accuracy-drop", "--max-drop", help="percentage points below the original at most"),
    ] = None,
    min_accuracy: Annotated[float | None, typer.Option(help="least accuracy in percent")] = None,
    budget: Annotated[
        str | None, typer.Option("--budget", help="0.5x: a share of the original's cost; 1.2e9: in the column's unit")
    ] = None,
    cost: CostOption = "macs",
    metric: Annotated[
        str,
        typer.Option(
            help="mean-iou, pixel-accuracy, mean-class-accuracy or frequency-weighted-iou",
            autocompletion=words("mean-iou", "pixel-accuracy", "mean-class-accuracy", "frequency-weighted-iou"),
        ),
    ] = "mean-iou",
    max_exits: Annotated[int, typer.Option(help="exits of a configuration, the last one included")] = 3,
    image_thresholds: Annotated[
        int, typer.Option(min=0, help="image thresholds tried at each gate; 0 tries all observed")
    ] = 0,
    require: Annotated[list[str] | None, typer.Option(help="exit that must be used; may be repeated")] = None,
    forbid: Annotated[list[str] | None, typer.Option(help="exit that must not be used; may be repeated")] = None,
    min_share: Annotated[float, typer.Option(help="least share of the images at each exit")] = 0.0,
    class_drop: Annotated[
        list[str] | None, typer.Option(metavar="CLASS=PP", help="most that one class may lose; may be repeated")
    ] = None,
    cost_limit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STATISTIC=SHARE",
            help="p95=1.1x, latency:max=1x, total ...: most that an image may cost, of the original; may be repeated",
        ),
    ] = None,
    resolution: Annotated[
        float, typer.Option(help="of a front: step in percent of the original's cost; 0: none")
    ] = 0.1,
    guarantee: Annotated[
        list[str] | None,
        typer.Option(
            help="cheapest with a promise, 'disagreement <= 0.02 with 95 %'; may be repeated (docs/guarantee.md)"
        ),
    ] = None,
    held_out: Annotated[
        str | None, typer.Option(help="split whose table proves the promise; by default the table is divided")
    ] = None,
    sweep: Annotated[
        Path | None, typer.Option(help="TOML file of many searches (docs/cluster.md); results go to --out")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Parquet file of --sweep; sweep.parquet by default")
    ] = None,
    baselines: Annotated[bool, typer.Option(help="also show what simpler choices reach")] = True,
    journal: Annotated[Path | None, typer.Option(help="file that lets a killed search go on; needs one target")] = None,
    time_limit: Annotated[float | None, typer.Option(help="seconds; then the best known, with its gap")] = None,
    threads: Annotated[
        int | None, typer.Option(help="threads, all cores by default; with --engine ray of each worker, 1 by default")
    ] = None,
    engine: EngineOption = "local",
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the best exits, heads and thresholds, and prove it.

    Without a target: <= 0.1 pp, <= 1 pp, best at <= 1x the cost, and the front.

    A front is given 10 seconds unless --time-limit says otherwise; it tells how complete it is.
    """
    from mess import search_verb
    from mess.progress import say
    from mess.reporting import tables
    from mess.searching import request

    given = request.targets(accuracy_drop=accuracy_drop, min_accuracy=min_accuracy, budget=budget, front=front)
    if min_cost and not (given and given[0][1].minimises_cost):
        raise ValueError("--min-cost: expected --accuracy-drop or --min-accuracy beside it")
    if min_cost and setting == "anytime" and accuracy_drop is not None:
        raise ValueError("--min-cost: expected --min-accuracy in the anytime setting, where a drop is the last exit's")
    if max_accuracy and budget is None:
        raise ValueError("--max-accuracy: expected --budget beside it")
    if journal is not None and not given:
        raise ValueError("--journal: expected one target beside it")
    settings = request.settings(
        setting=setting,
        cost=cost,
        metric=metric,
        max_exits=max_exits,
        image_thresholds=image_thresholds,
        require=require or (),
        forbid=forbid or (),
        min_share=min_share,
        class_drop=class_drop or (),
        cost_limit=cost_limit or (),
        resolution=resolution,
        time_limit=time_limit,
        threads=threads,
        engine=engine,
        workers=workers,
    )
    if out is not None and sweep is None:
        raise ValueError("--out: expected --sweep beside it")
    if sweep is not None:
        out = out or Path("sweep.parquet")
        if given or guarantee or journal is not None or held_out is not None:
            raise ValueError("--sweep: expected no target, --guarantee, --held-out or --journal beside it")
        apart = request.differing(settings)
        if apart:
            raise ValueError(f"--{apart[0]}: expected in the entries of the sweep file, got it beside --sweep")
        swept = search_verb.sweep_run(
            run, sweep, out, split=split, engine=settings.engine, workers=workers, threads=threads
        )
        if as_json:
            said = {
                name: {"error": f} if isinstance(f, str) else tables.search_json(f, None) for name, f in swept.items()
            }
            typer.echo(json_text(said))
        else:
            for name, found in swept.items():
                text = f"{name}: error: {found}" if isinstance(found, str) else tables.search_text(name, found, {})
                say(text)
            say(f"table: {out}")
        if any(isinstance(found, str) or not found.configurations for found in swept.values()):
            raise typer.Exit(1)
        return
    if guarantee:
        if given or journal is not None:
            raise ValueError("--guarantee: expected no other target and no --journal beside it")
        promised = search_verb.guarantee_run(run, guarantee, split=split, held_out=held_out, settings=settings)
        if as_json:
            typer.echo(json_text(tables.guaranteed_json(promised)))
        else:
            say(tables.guaranteed_text(promised))
        if promised.configuration is None:
            raise typer.Exit(1)
        return
    if held_out is not None:
        raise ValueError("--held-out: expected --guarantee beside it")
    results = search_verb.search_run(
        run, split=split, target=given[0] if given else None, settings=settings, journal=journal
    )
    smaller = search_verb.search_smaller(run, split=split, results=results, settings=settings)
    objects = {}
    for name, result in results.items():
        if not as_json:
            say(tables.search_text(name, result, smaller))
        target = given[0][1] if given else request.STANDARD_TARGETS.get(name)
        if baselines and target not in (None, request.Target()) and setting == "input-dependent":
            simpler = search_verb.search_baselines(run, split=split, target=target, settings=settings)
        else:
            simpler = {}
        if as_json:
            objects[name] = tables.search_json(result, smaller.get(name), simpler)
        elif simpler:
            say(tables.baselines_text(result, simpler))
    if as_json:
        typer.echo(json_text(objects))
    if any(not result.configurations for result in results.values()):
        raise typer.Exit(1)


@app.command()
def evaluate(
    run: RunArgument,
    split: Annotated[str, typer.Option(help="split to report on; not the one that was searched")] = "test",
    clock_images: Annotated[int, typer.Option(min=1, help="images to time, one at a time")] = 40,
    rounds: Annotated[int, typer.Option(min=1, help="timing rounds")] = 3,
    as_json: JsonOption = False,
) -> None:
    """Report what was found on an unseen split: accuracy, MACs, the clock, and the share of images at each exit."""
    from mess import verbs

    result = verbs.evaluate_run(run, split=split, clock_images=clock_images, rounds=rounds)
    if as_json:
        typer.echo(json_text(result))


@app.command()
def run(
    run: Annotated[Path, typer.Argument(help="run folder, or one made by `mess share`", show_default=False)],
    images: Annotated[list[Path], typer.Argument(help="picture files", show_default=False)],
    configuration: Annotated[
        str | None,
        typer.Option(
            help="name in RUN/configurations, or a file; by default drop-1pp, or what is shared",
            autocompletion=found_there,
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(help="of a shared folder that holds no model: module.py:factory, as mess train takes it")
    ] = "",
    out: Annotated[Path, typer.Option(help="folder for the label maps (indexed PNG)")] = Path("segmented"),
    as_json: JsonOption = False,
) -> None:
    """Segment pictures with a configuration that was found; easy ones stop early."""
    from mess import verbs
    from mess.progress import say

    for path, result in verbs.run_images(run, images, configuration=configuration, out=out, model=model):
        # cut off, not rounded: 0.9997 is not the 1 that was asked for
        confidences = ", ".join(f"{int(c * 1000 + 1e-9) / 1000:.3f}" for c in result.image_confidence)
        if as_json:
            fields = {"image": str(path), "exit": result.exit, "image_confidence": result.image_confidence}
            typer.echo(json_text({**fields, "milliseconds": result.milliseconds}))
        else:
            say(
                f"{path}: left at {result.exit} after {result.milliseconds:.1f} ms "
                f"(image confidence {confidences or '-'})"
            )


@app.command()
def export(
    run: RunArgument,
    out: Annotated[Path, typer.Option(help="deployment folder; an earlier export there is replaced")],
    configuration: ConfigurationOption = None,
    any_size: Annotated[
        bool, typer.Option("--any-size", help="for pictures of other sizes too: mess.Runtime(..., size=)")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a configuration as a folder of ONNX files that `mess.Runtime` runs without torch."""
    from mess import verbs
    from mess.progress import say

    manifest = verbs.export_run(run, configuration=configuration, out=out, any_size=any_size)
    if as_json:
        typer.echo(json_text(manifest.to_json()))
        return
    size = sum(facts["bytes"] for facts in manifest.files.values())
    exits = ", ".join(entry.name for entry in manifest.exits)
    say(f"{out}: {len(manifest.files)} files, {size / 1e6:.1f} MB, exits {exits}")


@app.command()
def share(
    run: RunArgument,
    out: Annotated[Path, typer.Option(help="folder; an earlier one of these is replaced")],
    configuration: Annotated[
        list[str] | None,
        typer.Option(help="name in RUN/configurations, the default first; by default all", autocompletion=found_there),
    ] = None,
    license: Annotated[str, typer.Option(help="of the weights, in the Hub's words, such as apache-2.0")] = "",
    push_to_hub: Annotated[str, typer.Option(help="user/name on the Hugging Face Hub, to upload it to")] = "",
    private: Annotated[
        bool, typer.Option("--private", help="make what is not there yet private; it is public by default")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write the network as a folder for `mess.from_pretrained` and the Hugging Face Hub, with a model card."""
    from mess import verbs
    from mess.progress import say

    shared = verbs.share_run(
        run, names=configuration or [], out=out, license=license, push_to_hub=push_to_hub, private=private
    )
    if as_json:
        typer.echo(json_text(shared.to_json()))
        return
    say(f"{out}: configurations {', '.join(shared.configurations)}")


@app.command()
def picture(
    run: RunArgument,
    configuration: ConfigurationOption = None,
    split: Annotated[str, typer.Option(help="split to draw; evaluate or calibrate it before")] = "test",
    num_images: Annotated[int, typer.Option(min=1, help="images, from easy to hard")] = 4,
    as_json: JsonOption = False,
) -> None:
    """Draw predictions at consecutive exits and confidence before and after refinement to RUN/pictures."""
    from mess import verbs

    written = verbs.picture_run(run, configuration=configuration, split=split, num_images=num_images)
    if as_json:
        typer.echo(json_text({"pictures": [str(path) for path in written]}))


@app.command()
def report(
    run: RunArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML file")] = Path("report.html"),
    cost: CostOption = "macs",
    num_samples: Annotated[
        int, typer.Option(min=1, help="images of each kind: easiest, hardest, wrongly left early")
    ] = 1,
    as_json: JsonOption = False,
) -> None:
    """Write one HTML file: work, trade-off, thresholds to play with, sample images. It opens offline."""
    from mess import verbs
    from mess.progress import say
    from mess.searching.request import COSTS

    column = COSTS.get(cost, cost)
    path = verbs.report_run(run, out, cost=column, num_samples=num_samples)
    if as_json:
        typer.echo(json_text({"report": str(path), "bytes": path.stat().st_size}))
        return
    say(f"report: {path}, {path.stat().st_size / 1e6:.1f} MB")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="run folder")] = Path("demo-run"),
    seed: Annotated[int, typer.Option(help="of everything random")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Do the whole job on drawn scenes, in about three minutes on two cores; nothing is downloaded."""
    from mess import verbs

    result = verbs.demo(out, seed=seed)
    if as_json:
        typer.echo(json_text(result))


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Say what is installed, what of it works here, and how to get the rest."""
    from mess import doctor as checks

    raise typer.Exit(checks.main(as_json=as_json))


def _configured(path: Path, context: typer.Context) -> dict[str, dict[str, Any]]:
    """What the file says, by verb and by the verb's parameter."""
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError, OSError) as error:  # no TOML, no UTF-8, no file
        raise ValueError(f"--config: {path}: {error}") from None
    verbs = cast("Any", context.command).commands
    found: dict[str, dict[str, Any]] = {}
    for verb, entries in given.items():
        if verb not in verbs or not isinstance(entries, dict):
            raise ValueError(f"--config: {path}: expected tables named after verbs ({', '.join(verbs)}), got {verb!r}")
        known = {flag.lstrip("-"): parameter for parameter in verbs[verb].params for flag in parameter.opts}
        unknown = sorted(set(entries) - set(known))
        if unknown:
            near = difflib.get_close_matches(unknown[0], known, n=3) or sorted(known)
            raise ValueError(
                f"--config: {path}: [{verb}]: expected flags of `mess {verb}` such as {', '.join(near)}, "
                f"got {unknown[0]!r}"
            )
        found[verb] = {known[flag].name: _as_flag(value, known[flag]) for flag, value in entries.items()}
    return found


def _as_flag(value: Any, parameter: Any) -> Any:
    """A list as the names joined by commas that a flag takes; for a flag that may be repeated a list of one or more."""
    if getattr(parameter, "multiple", False):
        return value if isinstance(value, list) else [value]
    return ",".join(map(str, value)) if isinstance(value, list) else value


def main() -> None:
    """Run a verb. Exit status: 0, or 1 (nothing satisfies the target), 2 (a mistake, one line on standard error), 130
    (Ctrl-C). With `--debug` the traceback comes too."""
    command = cast("Callable[..., Any]", typer.main.get_command(app))
    warnings.showwarning = _show_warning
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # of a file on Windows, which has no ≥
    sys.path.insert(0, "")  # so that --model finds a module in the current folder, as `python -m` does
    try:
        command(prog_name="mess")
    except (ValueError, TypeError, OSError, LookupError, RuntimeError, ModuleNotFoundError) as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        missing = isinstance(error, ModuleNotFoundError)
        hint = "; `mess doctor` says how to install what is missing (`mess[search]` has `mess search` alone)"
        sys.stderr.write(f"mess: error: {error}{hint if missing else ''}\n")
        sys.exit(2)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """What `mess` warns of is one line; what is meant for programmers is left out."""
    if issubclass(category, UserWarning):
        sys.stderr.write(f"mess: warning: {message}\n")


def _size(text: str) -> tuple[int, int]:
    height, separator, width = text.lower().partition("x")
    if not (separator and height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise ValueError(f"--size: expected HEIGHTxWIDTH in pixels, got {text!r}")
    return int(height), int(width)


def _shape(text: str) -> tuple[int, int, int]:
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) for part in parts):
        raise ValueError(f"--input: expected CHANNELSxHEIGHTxWIDTH, got {text!r}")
    channels, height, width = map(int, parts)
    return channels, height, width


def _numbers(flag: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise ValueError(f"{flag}: expected numbers joined by commas, such as 0.5,0.5,0.5, got {text!r}") from None


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
