"""The model card of a shared network: Markdown under a header of metadata that the Hugging Face Hub reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mess.deployment.configuration import Configuration, describe
from mess.model.zoo import comes_from_a_library


def model_card(
    configurations: Mapping[str, Configuration],
    *,
    model: str,
    size: tuple[int, int],
    measured: Mapping[str, Any] | None = None,
    license: str = "",
) -> str:
    """Text of `README.md`.

    Args:
        configurations: by name, the default first.
        model: what the original model is, or nothing.
        size: (height, width) of the input.
        measured: what `mess evaluate` wrote: `split`, `images`, `facts`, `original` and `configurations` with
            `mean_iou`, `macs`, `shares` and `clock` each; without it the card says what the search found.
        license: in the Hub's words, or nothing.
    """
    net = "" if comes_from_a_library(model) else ", net=my_model"
    early = "; easy images leave it early" if any(len(c.exits) > 1 for c in configurations.values()) else ""
    use = ", ".join(f"`{name}`" for name in configurations)
    return "\n".join(
        [
            "---",
            *_metadata(configurations, measured, license),
            "---",
            "",
            "# Multi-exit segmentation network",
            "",
            f"{model or 'A segmentation model'} for images of {size[0]} x {size[1]}{early}. Made with `mess` "
            "(Multi-Exit Semantic Segmentation Networks, arXiv:2106.03527).",
            "",
            "```python",
            "import mess",
            "",
            f'network = mess.from_pretrained("."{net})  # this folder, or its name on the Hub',
            "prediction = network(images)  # (B, 3, H, W), normalised as config.json says",
            "prediction.labels, prediction.exits",
            "```",
            "",
            f"Configurations: {use}; the first is the default, `configuration=` names another.",
            "",
            *(f"- `{name}` ({chosen.setting}): {describe(chosen.exits)}" for name, chosen in configurations.items()),
            "",
            *(_promised(configurations) if measured is None else _measured(configurations, measured)),
            "",
        ]
    )


def _measured(configurations: Mapping[str, Configuration], measured: Mapping[str, Any]) -> list[str]:
    """Accuracy, work and time on a split, and whether the search saw it."""
    original, found = measured["original"], measured["configurations"]
    missing = [name for name in configurations if name not in found]
    if missing:
        raise ValueError(f"measured: expected all of {list(configurations)}, got none for {missing[0]!r}")
    by_these = ", ".join(f"`{name}`" for name, chosen in configurations.items() if _is_chosen_by(chosen, measured))
    seen = (
        f"by which {by_these} was chosen: too good to be true of others" if by_these else "which the search did not see"
    )
    lines = [
        f"Measured on the {measured['split']} split ({measured['images']} images), {seen}; time of one image on the "
        "CPU, next to the original model in the same run:",
        "",
        "| network | mean IoU | MACs | time | images that leave at each exit |",
        "|---|---|---|---|---|",
        f"| original | {original['mean_iou']:.2%} | {original['macs'] / 1e9:.2f} G | 100 % | |",
    ]
    for name in configurations:
        row = found[name]
        time = row["clock"]["deployed_ms"] / row["clock"]["plain_ms"]
        shares = ", ".join(f"{share:.0%}" for share in row["shares"])
        lines.append(
            f"| {name} | {row['mean_iou']:.2%} | {row['macs'] / original['macs']:.1%} | {time:.1%} | {shares} |"
        )
    return lines


def _is_chosen_by(chosen: Configuration, measured: Mapping[str, Any]) -> bool:
    """Whether what was measured is of the images that the search saw, or of those that a promise was proven on."""
    return measured["split"] in (chosen.promise.get("split"), chosen.promise.get("searched_split"))


def _promised(configurations: Mapping[str, Configuration]) -> list[str]:
    """What the search found, on the images that it chose by."""
    rows = [
        f"| {name} | {chosen.promise['accuracy']:.2%} |"
        for name, chosen in configurations.items()
        if "accuracy" in chosen.promise
    ]
    said = "Not measured on images that the search did not see. On those that it saw:"
    return [said, "", "| network | accuracy |", "|---|---|", *rows] if rows else ["Nothing was measured."]


def _metadata(
    configurations: Mapping[str, Configuration], measured: Mapping[str, Any] | None, license: str
) -> list[str]:
    """Lines of YAML; strings are written as JSON, which YAML reads."""
    lines = [
        "library_name: mess",
        "pipeline_tag: image-segmentation",
        "tags: [mess, early-exit, semantic-segmentation]",
    ]
    if license:
        lines.append(f"license: {json.dumps(license)}")
    unseen = {name for name, chosen in configurations.items() if measured and not _is_chosen_by(chosen, measured)}
    if measured is not None and unseen:
        data = json.dumps(str(measured["facts"].get("data", "a data set")))
        lines += ["model-index:", "- name: multi-exit segmentation network", "  results:"]
        lines += [
            line
            for name, row in measured["configurations"].items()
            if name in unseen
            for line in (
                "  - task: {type: image-segmentation}",
                f"    dataset: {{name: {data}, type: {data}, split: {json.dumps(measured['split'])}}}",
                f"    metrics: [{{type: mean_iou, value: {row['mean_iou']:.6f}, name: {json.dumps(name)}}}]",
            )
        ]
    return lines
