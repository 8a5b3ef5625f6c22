"""The verbs on the command line. Each only reads its arguments; what it does is in `mess.verbs`.

Imports of torch happen inside the verbs, so that `--help` is quick.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, cast

import typer

app = typer.Typer(
    name="mess",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        help="mobilenet_v2_fcn[:OUTPUT_STRIDE], small_resnet_fcn, fcn_resnet50, deeplabv3_resnet50, "
        "lraspp_mobilenet_v3_large, or your own package.module:factory, called with num_classes=",
    ),
]
SizeOption = Annotated[str, typer.Option("--size", metavar="HxW", help="height x width, such as 240x320")]
RunArgument = Annotated[Path, typer.Argument(help="run folder, made by `mess train --out`", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON instead of a table")]
EdgesOption = Annotated[str, typer.Option(help="label boundaries: canny or labels")]


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="print the version and stop")] = False) -> None:
    """Make a segmentation model cheaper: easy images leave it early.

    A job is a run folder and one verb on it after the other: train, calibrate, search, evaluate; then picture it, or
    run it on your own pictures. `mess demo` does all of them on drawn scenes; `mess profile` only looks at a model.
    """
    if version:
        import mess_core

        typer.echo(f"mess {mess_core.__version__}")
        raise typer.Exit


@app.command()
def profile(
    model: ModelOption,
    size: SizeOption = "512x512",
    classes: Annotated[int, typer.Option(help="number of classes")] = 21,
    num_exits: Annotated[int, typer.Option(help="exits, the final one included")] = 6,
    by: Annotated[str, typer.Option(help="macs (counted) or latency (measured)")] = "macs",
    picture: Annotated[Path | None, typer.Option(help="also draw the workload to this PNG file")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show where a model spends its work, and where exits would go. Nothing is trained."""
    import torch

    from mess.model.network import convert
    from mess.model.zoo import model_from_spec
    from mess.progress import console

    net = model_from_spec(model, num_classes=classes)
    kind = _choice("by", by, ("macs", "latency"))
    network = convert(net, torch.zeros(1, 3, *_size(size)), num_exits=num_exits, heads="tiny", by=kind)
    if picture is not None:
        from mess.reporting.figures import workload_figure

        workload_figure(network, picture)
    if as_json:
        total = {"total": network.workload.total, "unit": network.workload.unit}
        typer.echo(json.dumps({**total, "points": [asdict(point) for point in network.points]}))
    else:
        from mess.reporting.tables import points_table

        console.print(points_table(network))


@app.command()
def train(
    model: ModelOption,
    data: Annotated[str, typer.Option(help="scenes[:COUNT] (drawn), folder:PATH or camvid:PATH")],
    size: SizeOption,
    out: Annotated[Path, typer.Option(help="run folder; calling again with the same settings resumes")],
    weights: Annotated[Path | None, typer.Option(help="safetensors file to start from")] = None,
    num_exits: Annotated[int, typer.Option(help="exits, the final one included")] = 6,
    heads: Annotated[str, typer.Option(help="full, small, tiny, or names such as fcn-r1-b0,fcn-r4-b1-d")] = "small",
    epochs: Annotated[int, typer.Option(help="epochs of stage 1 (backbone and exits)")] = 30,
    exit_epochs: Annotated[int, typer.Option(help="epochs of stage 2 (all heads, frozen backbone)")] = 10,
    learning_rate: Annotated[float, typer.Option(help="peak rate of stage 1")] = 1e-3,
    exit_learning_rate: Annotated[float, typer.Option(help="peak rate of stage 2")] = 1e-3,
    batch_size: Annotated[int, typer.Option(help="images a batch")] = 8,
    schedule: Annotated[
        str, typer.Option(help="stage 1: round_robin, or divisor (the printed formula)")
    ] = "round_robin",
    loss: Annotated[str, typer.Option(help="stage 2: pfd, kd or ce")] = "pfd",
    loss_stride: Annotated[int, typer.Option(help="compare every n-th pixel in both directions")] = 1,
    precision: Annotated[str, typer.Option(help="float32 or bfloat16")] = "float32",
    seed: Annotated[int, typer.Option(help="of everything random")] = 0,
) -> None:
    """Convert a model, train it with its exits (stage 1), then every candidate head (stage 2)."""
    from mess import runs, verbs
    from mess.training.loop import TrainSettings

    settings = runs.RunSettings(
        model=model, data=data, size=_size(size), num_exits=num_exits, heads=heads, batch_size=batch_size, seed=seed
    )
    first = TrainSettings(
        epochs=epochs,
        learning_rate=learning_rate,
        schedule=_choice("schedule", schedule, ("round_robin", "divisor")),
        loss_stride=loss_stride,
        precision=_choice("precision", precision, ("float32", "bfloat16")),
        seed=seed,
    )
    kind = _choice("loss", loss, ("pfd", "kd", "ce"))
    second = replace(first, epochs=exit_epochs, learning_rate=exit_learning_rate, loss=kind)
    verbs.train_run(out, settings, first, second, weights)


@app.command()
def calibrate(
    run: RunArgument,
    split: Annotated[str, typer.Option(help="labelled split; use one that was not trained on")] = "val",
    edges: EdgesOption = "canny",
    refine: Annotated[bool, typer.Option(help="median-refine confidences near boundaries")] = True,
    confidence: Annotated[str, typer.Option(help="top1, margin or entropy")] = "top1",
    latency_rounds: Annotated[int, typer.Option(help="rounds of the latency measurement; 0 skips it")] = 15,
) -> None:
    """Run every exit on a split once, and keep counts, confidences and costs for the search."""
    from mess import verbs
    from mess.confidence import PolicySettings
    from mess.progress import console

    policy = PolicySettings(
        refine=refine,
        edges=_choice("edges", edges, ("canny", "labels")),
        confidence=_choice("confidence", confidence, ("top1", "margin", "entropy")),
    )
    table = verbs.calibrate_run(run, split=split, policy=policy, latency_rounds=latency_rounds)
    final = len(table.exits) - 1
    best = max(range(final), key=table.mean_iou)
    console.print(
        f"{len(table.images)} images, {len(table.exits)} exits; final exit {table.mean_iou(final):.2%} mIoU, "
        f"best early exit {table.exits[best]} {table.mean_iou(best):.2%}",
        highlight=False,
    )


@app.command()
def search(
    run: RunArgument,
    split: Annotated[str, typer.Option(help="split whose calibration table is searched")] = "val",
    setting: Annotated[str, typer.Option(help="input-dependent, budgeted or anytime")] = "input-dependent",
    max_drop: Annotated[
        float | None, typer.Option(help="cheapest within this many percentage points of the original")
    ] = None,
    min_accuracy: Annotated[float | None, typer.Option(help="cheapest with at least this mean IoU in percent")] = None,
    max_cost_ratio: Annotated[float | None, typer.Option(help="most accurate at this share of the cost")] = None,
    cost: Annotated[str, typer.Option(help="macs or latency_ms")] = "macs",
    max_exits: Annotated[int, typer.Option(help="exits of a configuration, the last one included")] = 3,
    image_thresholds: Annotated[
        int, typer.Option(help="image thresholds tried at each gate; 0 tries all observed")
    ] = 16,
    time_limit: Annotated[float | None, typer.Option(help="seconds; then the best known is given")] = None,
    threads: Annotated[int | None, typer.Option(help="threads; all cores by default")] = None,
    as_json: JsonOption = False,
) -> None:
    """Find the best exits, heads and thresholds. Without a target: <= 0.1 pp, <= 1 pp, best at <= 1x, and the front."""
    from mess import verbs
    from mess.deployment import describe
    from mess.progress import console

    targets = {
        f"drop-{max_drop or 0:g}pp": None if max_drop is None else verbs.Target(max_drop=max_drop / 100),
        f"miou-{min_accuracy or 0:g}": None if min_accuracy is None else verbs.Target(min_accuracy=min_accuracy / 100),
        f"best-at-{max_cost_ratio or 0:g}x": None
        if max_cost_ratio is None
        else verbs.Target(max_cost_ratio=max_cost_ratio),
    }
    _in_range("max-drop", max_drop, 0, 100, "percentage points, such as 1")
    _in_range("min-accuracy", min_accuracy, 1, 100, "percent, such as 60")
    _in_range("max-cost-ratio", max_cost_ratio, 1e-9, 1e9, "a share of the original cost, such as 0.5")
    given = [(name, target) for name, target in targets.items() if target is not None]
    if len(given) > 1:
        raise ValueError(f"--max-drop, --min-accuracy, --max-cost-ratio: expected at most one, got {len(given)}")
    settings = verbs.SearchSettings(
        setting=_choice("setting", setting, ("input-dependent", "budgeted", "anytime")),
        cost=cost,
        max_exits=max_exits,
        image_thresholds=image_thresholds or None,
        time_limit=time_limit,
        threads=threads,
    )
    results = verbs.search_run(run, split=split, target=given[0] if given else None, settings=settings)
    if as_json:
        typer.echo(json.dumps({n: [c.to_json() for c in r.configurations] for n, r in results.items()}))
    for name, result in results.items():
        if as_json:
            continue
        if name == "front":
            console.print(f"front: {len(result.configurations)} configurations, {result.status}", highlight=False)
        elif result.configurations:
            promise = result.best.promise
            accuracy = f"mIoU {promise['accuracy']:.2%}"
            if setting == "anytime":
                accuracy = (
                    f"mIoU {promise['last_accuracy']:.2%} at the end, {promise['accuracy']:.2%} on average when cut off"
                )
            console.print(
                f"{name}: {describe(result.best.exits)}\n  {accuracy} "
                f"(original {result.baseline_accuracy:.2%}), {promise['cost'] / result.baseline_cost:.1%} of the cost, "
                f"{result.status}, {result.evaluated:,} configurations evaluated",
                highlight=False,
            )
        else:
            console.print(f"{name}: nothing satisfies the target ({result.status})", highlight=False)
    if any(not result.configurations for result in results.values()):
        raise typer.Exit(1)


@app.command()
def evaluate(
    run: RunArgument,
    split: Annotated[str, typer.Option(help="split to report on; not the one that was searched")] = "test",
    clock_images: Annotated[int, typer.Option(help="images to time, one at a time")] = 40,
    rounds: Annotated[int, typer.Option(help="timing rounds")] = 3,
    as_json: JsonOption = False,
) -> None:
    """Report what was found on an unseen split: accuracy, MACs, the clock, and the share of images at each exit."""
    from mess import verbs
    from mess.progress import console

    console.quiet = as_json
    result = verbs.evaluate_run(run, split=split, clock_images=clock_images, rounds=rounds)
    if as_json:
        typer.echo(json.dumps(result))


@app.command()
def run(
    run: RunArgument,
    images: Annotated[list[Path], typer.Argument(help="picture files", show_default=False)],
    configuration: Annotated[str, typer.Option(help="name in RUN/configurations, or a file")] = "drop-1pp",
    out: Annotated[Path, typer.Option(help="folder for the label maps (indexed PNG)")] = Path("segmented"),
    as_json: JsonOption = False,
) -> None:
    """Segment pictures with a configuration that was found; easy ones stop early."""
    from mess import verbs
    from mess.progress import console

    results = verbs.run_images(run, images, configuration=configuration, out=out)
    for path, result in results.items():
        confidences = ", ".join(f"{c:.3f}" for c in result.image_confidence)
        if as_json:
            fields = {"image": path, "exit": result.exit, "image_confidence": result.image_confidence}
            typer.echo(json.dumps({**fields, "milliseconds": result.milliseconds}))
        else:
            console.print(
                f"{path}: left at {result.exit} after {result.milliseconds:.1f} ms "
                f"(image confidence {confidences or '-'})",
                highlight=False,
            )


@app.command()
def picture(
    run: RunArgument,
    configuration: Annotated[str, typer.Option(help="name in RUN/configurations, or a file")] = "drop-1pp",
    split: Annotated[str, typer.Option(help="split to draw; evaluate or calibrate it before")] = "test",
    num_images: Annotated[int, typer.Option(help="images, from easy to hard")] = 4,
) -> None:
    """Draw predictions at consecutive exits and confidence before and after refinement to RUN/pictures."""
    from mess import verbs

    verbs.picture_run(run, configuration=configuration, split=split, num_images=num_images)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="run folder")] = Path("demo-run"),
    seed: Annotated[int, typer.Option(help="of everything random")] = 0,
) -> None:
    """Do the whole job on drawn scenes, in about three minutes on two cores; nothing is downloaded."""
    from mess import verbs

    verbs.demo(out, seed=seed)


def main() -> None:
    """Run a verb; a user's mistake is one line on standard error and exit status 2."""
    command = cast("Callable[..., Any]", typer.main.get_command(app))
    sys.path.insert(0, "")  # so that --model finds a module in the current folder, as `python -m` does
    try:
        command(prog_name="mess")
    except (ValueError, TypeError, OSError, LookupError, RuntimeError) as error:
        sys.stderr.write(f"mess: error: {error}\n")
        sys.exit(2)


def _size(text: str) -> tuple[int, int]:
    height, separator, width = text.lower().partition("x")
    if not (separator and height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise ValueError(f"--size: expected HEIGHTxWIDTH in pixels, got {text!r}")
    return int(height), int(width)


def _in_range(option: str, value: float | None, least: float, most: float, expected: str) -> None:
    if value is not None and not least <= value <= most:
        raise ValueError(f"--{option}: expected {expected}, got {value:g}")


def _choice(option: str, value: str, known: tuple[str, ...]) -> Any:
    if value not in known:
        raise ValueError(f"--{option}: expected one of {', '.join(known)}, got {value!r}")
    return value
