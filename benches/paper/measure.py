"""Tables 3, 4 and 5 of one seed, from what `jobs` trained: searched on val, reported on test. Wants a quiet machine."""

from __future__ import annotations

import json
from typing import Any

import torch

import mess
from benches.paper.jobs import Plan, plain_heads
from benches.paper.policies import compared
from mess import CalibrationTable, search_verb, verbs
from mess.files import write_json
from mess.searching import request

DROPS = {"<= 0.1 pp": 0.001, "<= 1 pp": 0.01}
MAX_DROP_OF_POLICIES = 0.01


def measure(plan: Plan, seed: int) -> dict[str, Any]:
    """What the tables need, kept in `measured.json`."""
    folder = plan.folder(seed, "aware")
    path = folder / "measured.json"
    if path.is_file():
        return dict(json.loads(path.read_text()))
    for split, rounds in (("val", 15), ("test", 0)):
        if not (folder / f"table-{split}.safetensors").is_file():
            verbs.calibrate_run(folder, split=split, latency_rounds=rounds)
    for name, target in request.STANDARD_TARGETS.items():
        search_verb.search_run(folder, target=(name, target))
    by_latency = request.SearchSettings(cost="latency_ms")
    search_verb.search_run(folder, target=("drop-1pp", request.Target(max_drop=0.01)), settings=by_latency)
    result = {
        "threads": torch.get_num_threads(),
        "end to end": verbs.evaluate_run(folder, split="test", clock_images=60, rounds=5),
        "placement": {name: placement(plan, seed, drop) for name, drop in DROPS.items()},
        "policies": compared(plain_heads(plan, seed, "aware-ce"), plan.run(seed, "fcn-r1-b0"), MAX_DROP_OF_POLICIES),
    }
    write_json(path, result)
    return result


def placement(plan: Plan, seed: int, max_drop: float) -> dict[str, Any]:
    """Costs as shares of the final exit's MACs and changes of mIoU, of the searched exits and the simpler choices."""
    folder = plan.folder(seed, "aware")
    tables = {s: CalibrationTable.load(folder / f"table-{s}.safetensors") for s in ("val", "test")}
    target, settings = request.Target(max_drop=max_drop), request.SearchSettings()
    chosen = {"searched": settings.search(tables["val"], target).best}
    chosen |= search_verb.search_baselines(folder, split="val", target=target, settings=settings)
    rows = {}
    for name, configuration in chosen.items():
        if configuration is None:
            continue
        row: dict[str, Any] = {"exits": [exit_.exit for exit_ in configuration.exits]}
        for split, table in tables.items():
            report, final = mess.evaluate(configuration, table), len(table.exits) - 1
            row[f"cost_{split}"] = report.cost / table.total_cost(final, "macs")
            row[f"change_{split}"] = report.accuracy - table.mean_iou(final)
        rows[name] = row
    return rows
