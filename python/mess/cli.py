"""The verbs on the command line. Each has a Python function of the same name in `mess`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

Model = Annotated[str, typer.Option(help="mobilenet_v2_fcn[:OUTPUT_STRIDE], small_resnet_fcn, fcn_resnet50, ... or package.module:factory")]
Data = Annotated[str, typer.Option(help="scenes[:COUNT] (drawn), folder:PATH or camvid:PATH")]
Size = Annotated[str, typer.Option(help="HEIGHTxWIDTH in pixels")]


@app.callback()
def main() -> None:
    """."""


@app.command()
def train(
    model: Model,
    data: Data,
    size: Size,
    out: Annotated[Path, typer.Option(help="run folder; a second call with the same settings resumes")],
    weights: Annotated[Path | None, typer.Option(help="safetensors file to start from")] = None,
    num_exits: Annotated[int, typer.Option(help="exits, the final one included")] = 6,
    heads: Annotated[str, typer.Option(help="full, small, tiny, or names such as fcn-r1-b0,fcn-r4-b1-d")] = "small",
    epochs: Annotated[int, typer.Option(help="epochs of stage 1 (backbone with exits)")] = 30,
    exit_epochs: Annotated[int, typer.Option(help="epochs of stage 2 (all heads, frozen backbone)")] = 10,
    learning_rate: Annotated[float, typer.Option(help="peak rate of stage 1")] = 1e-3,
    exit_learning_rate: Annotated[float, typer.Option(help="peak rate of stage 2")] = 1e-3,
    batch_size: Annotated[int, typer.Option(help="images a batch")] = 8,
    schedule: Annotated[str, typer.Option(help="round_robin, or divisor (the formula as printed)")] = "round_robin",
    loss: Annotated[str, typer.Option(help="pfd, kd or ce (stage 2)")] = "pfd",
    loss_stride: Annotated[int, typer.Option(help="compare on every n-th pixel; 1 is every pixel")] = 1,
    precision: Annotated[str, typer.Option(help="float32 or bfloat16")] = "float32",
    seed: Annotated[int, typer.Option(help="of everything random")] = 0,
) -> None:
    """Train backbone and exits, then every candidate head."""
    from dataclasses import replace

    from mess import runs
    from mess.training import loop

    height, width = (int(v) for v in size.split("x"))
    settings = runs.RunSettings(model=model, data=data, size=(height, width), num_exits=num_exits, heads=heads, batch_size=batch_size, seed=seed)
    first = loop.TrainSettings(epochs=epochs, learning_rate=learning_rate, schedule=schedule, loss_stride=loss_stride, precision=precision, seed=seed)
    second = replace(first, epochs=exit_epochs, learning_rate=exit_learning_rate, loss=loss)
    network = runs.new_network(settings, weights=weights)
    settings.save(out)
    loop.train(network, runs.loader(settings, split="train", train=True), pretraining=first, exits=second, out=out)


if __name__ == "__main__":
    app()
