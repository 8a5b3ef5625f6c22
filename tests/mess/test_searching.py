"""What is told beside a search: the plain network of the same cost. And that a search needs no torch."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
from benches.python.guarantee import as_calibration_table
from benches.python.search_table import synthetic_table

import mess
import mess_core
from mess import Configuration
from mess.calibration.table import CalibrationTable
from mess.deployment.configuration import ChosenExit
from mess.policy import PolicySettings
from mess.reporting import charts
from mess.reporting.tables import amount, configuration_table, smaller_text
from mess.search_verb import told_apart
from mess.searching import baselines, request, smaller_network
from mess.searching.request import SearchSettings
from mess.searching.solve import exit_accuracy

on_posix = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


def test_the_smaller_network_is_the_best_single_exit_at_the_cost(table):
    for ratio in (0.05, 0.2, 0.5, 0.9, 1.0):
        limit = ratio * table.total_cost(table.exits.index("final"), "macs")
        affordable = [i for i in range(len(table.exits)) if table.total_cost(i, "macs") <= limit]
        found = smaller_network(table, max_cost=limit)
        if not affordable:
            assert found is None
            continue
        assert len(found.exits) == 1
        assert found.promise["accuracy"] == max(table.mean_iou(i) for i in affordable)
        assert found.promise["cost"] <= limit


def test_whether_a_smaller_network_is_better_is_said():
    def cut(accuracy):
        promise = {"accuracy": accuracy, "cost": 30.0}
        return Configuration(setting="budgeted", model=(), exits=(ChosenExit(exit="0:x"),), promise=promise)

    assert smaller_text(0.5, cut(0.48), 100.0).endswith(
        "No: cut off at 0:x, it reaches 48.00% at 30.0% of the cost, 2.00 pp less"
    )
    assert "YES: cut off at 0:x, it reaches 51.00% at 30.0% of the cost, 1.00 pp more" in smaller_text(
        0.5, cut(0.51), 100.0
    )
    for same in (0.5, 0.50004):
        assert " No: cut off at 0:x" in smaller_text(0.5, cut(same), 100.0)
        assert smaller_text(0.5, cut(same), 100.0).endswith("the same")
    assert "There is none" in smaller_text(0.5, None, 100.0)


def test_a_table_of_exits_counts_the_decisions_that_are_taken(table):
    costs = {column: {**of, "policy": np.full(len(table.exits), 1e9)} for column, of in table.costs.items()}
    deciding = replace(table, costs=costs)
    for setting, decisions in (("anytime", 0), ("input-dependent", 1)):
        both = [table.exits[0], "final"]
        best = mess.search(deciding, setting=setting, max_cost=1e12, required_exits=both, max_exits=2).best
        shown = configuration_table("", best, deciding, mess.evaluate(best, deciding))
        index = [table.exits.index(chosen.exit) for chosen in best.exits]
        spent = table.costs["macs"]["backbone"][index[1]] + sum(table.costs["macs"]["head"][i] for i in index)
        assert list(shown.columns[3].cells)[1] == amount(spent + 1e9 * decisions, "macs")


def test_a_table_of_exits_has_a_heading_for_every_cost(table):
    extra = {f"{name}_ms": {**table.costs["macs"]} for name in ("onnxruntime", "openvino")}
    more = replace(table, costs={**table.costs, **extra, "size_mb": {**table.costs["macs"]}})
    best = mess.search(more, max_cost_ratio=1.0).best
    shown = configuration_table("", best, more, mess.evaluate(best, more))
    headings = [str(column.header) for column in shown.columns]
    assert headings[3:-2] == ["MACs", "latency", "onnxruntime", "openvino", "size"]
    assert headings[-2:] == ["mIoU alone", "leaving"]
    cells = [list(column.cells)[-1] for column in shown.columns]
    assert cells[5].endswith(" ms")
    assert cells[7].endswith(" MB")
    assert cells[-1].endswith("%")
    less = replace(table, costs={"macs": table.costs["macs"]})
    columns = configuration_table("", best, less, mess.evaluate(best, less)).columns
    assert [str(column.header) for column in columns[3:]] == ["MACs", "mIoU alone", "leaving"]


WITHOUT_TORCH = """
import sys
class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, NotInstalled())
from mess.__main__ import main
main()
"""


@pytest.mark.parametrize("arguments", [["--accuracy-drop", "1"], [], ["--guarantee", "disagreement <= 0.4 with 90 %"]])
def test_a_table_is_searched_without_torch(tmp_path, arguments):
    as_calibration_table(synthetic_table(images=40, classes=4, points=3, heads=3, pixels=3), "val").save(
        tmp_path / "table.safetensors"
    )
    command = [sys.executable, "-c", WITHOUT_TORCH, "search", str(tmp_path / "table.safetensors"), "--json", *arguments]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Traceback" not in found.stderr, found.stderr
    assert found.returncode in (0, 1), found.stderr
    assert json.loads(found.stdout)
    if not arguments:
        assert (tmp_path / "pictures" / "tradeoff.png").is_file()
        assert (tmp_path / "configurations" / "drop-1pp.json").is_file()


def test_a_verb_that_needs_torch_says_what_to_install(tmp_path):
    command = [sys.executable, "-c", WITHOUT_TORCH, "evaluate", str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert "mess: error: " in found.stderr
    assert "torch" in found.stderr
    assert "mess doctor" in found.stderr
    assert "Traceback" not in found.stderr


def right_everywhere(right, cost, images=10, confidence=None) -> CalibrationTable:
    """Exits `0:h`, `1:h`, ..., `final` that get so many of 100 pixels right in every image, all of one class."""
    num = len(right)
    counts = np.repeat(np.array(right, np.int64)[:, None, None], images, axis=1)
    return CalibrationTable(
        exits=(*(f"{i}:h" for i in range(num - 1)), "final"),
        points=np.arange(num),
        images=tuple(map(str, range(images))),
        class_names=("c",),
        pixel_thresholds=(0.5,),
        intersection=counts,
        predicted=counts.copy(),
        ground_truth=np.full((images, 1), 100),
        disagreement=np.zeros((num, images), np.int64),
        image_confidence=np.zeros((num, 1, images)) if confidence is None else confidence,
        costs={"macs": {"backbone": np.array(cost, float), "head": np.zeros(num), "policy": np.zeros(num)}},
        policy=PolicySettings(),
        input_size=(10, 10),
        model=tuple(f"m.{i}" for i in range(num - 1)),
    )


def test_what_is_exactly_at_a_relative_limit_is_within_it():
    """0.8 - 0.1 is above 0.7 in float64, and 0.7 * 3 / 3 below."""
    table = right_everywhere([70, 80], [1.0, 10.0])
    assert mess.search(table, setting="budgeted", max_drop=0.1).best.promise["cost"] == 1
    table = right_everywhere([50, 80], [0.1, 0.7], 3)
    for options in (
        {"setting": "budgeted", "max_drop": 0.0, "cost_limits": {"max": 1.0}},
        {"max_drop": 0.0, "cost_limits": {"p95": 1.0}, "max_exits": 2},
        {"setting": "anytime", "max_cost_ratio": 1.0, "required_exits": ["final"], "max_exits": 1},
        {"setting": "budgeted", "max_drop": 0.0, "max_class_drop": {"c": 0.0}},
    ):
        result = mess.search(table, **options)
        assert (result.status, [chosen.exit for chosen in result.best.exits]) == ("optimal", ["final"])
    with pytest.raises(ValueError, match="max_class_drop: expected a number for 'c', got nan"):
        mess.search(table, max_drop=0.0, max_class_drop={"c": float("nan")})
    with pytest.raises(ValueError, match="resolution: expected a share of the final exit's cost, 0 or more, got -1"):
        mess.search(table, resolution=-1.0)


def two_columns():
    """MACs and milliseconds that disagree about the second exit."""
    table = as_calibration_table(synthetic_table(images=120, classes=4, points=4, heads=3, pixels=3), "val")
    macs = table.costs["macs"]
    slow = {**macs, "head": 5 * macs["head"].max() - 4 * macs["head"], "policy": macs["policy"] + 0.01}
    return replace(table, costs={"macs": macs, "latency_ms": slow})


@pytest.mark.parametrize("statistic", ["mean", "p95", "max", "total"])
def test_a_limit_on_another_cost(statistic):
    """Against all single exits and what the search finds: the limit holds in milliseconds, and MACs are least."""
    table = two_columns()
    by = {name: mess.search(table, max_drop=0.03, max_exits=2, cost=name).best for name in table.costs}
    final = table.total_cost(len(table.exits) - 1, "latency_ms")

    def milliseconds(configuration):
        exits = [table.exits.index(chosen.exit) for chosen in configuration.exits]
        costs, shares = table.costs["latency_ms"], mess.searching.evaluate(configuration, table).shares
        heads = np.cumsum([costs["head"][e] + costs["policy"][e] for e in exits])
        heads[-1] -= costs["policy"][exits[-1]]
        stops = costs["backbone"][exits] + heads
        order = np.cumsum(shares)
        return {
            "mean": float(stops @ shares),
            "p95": float(stops[np.searchsorted(order, 0.95 - 1e-12)]),
            "max": float(stops[np.flatnonzero(shares)[-1]]),
            "total": float(stops[-1]),
        }[statistic]

    least, most = sorted((milliseconds(by["latency_ms"]), milliseconds(by["macs"])))
    limit = (least + most) / 2
    found = mess.search(table, max_drop=0.03, max_exits=2, cost_limits={f"latency_ms:{statistic}": limit / final})
    assert found.status == "optimal"
    assert milliseconds(found.best) <= limit * (1 + 1e-9)
    assert milliseconds(by["macs"]) > limit  # so it binds
    assert found.best.promise["cost"] > by["macs"].promise["cost"]
    for exit_index in range(len(table.exits)):
        single = replace(found.best, setting="budgeted", exits=(ChosenExit(exit=table.exits[exit_index]),))
        if table.total_cost(exit_index, "latency_ms") <= limit:
            report = mess.searching.evaluate(single, table)
            if report.accuracy >= found.baseline_accuracy - 0.03:
                assert found.best.promise["cost"] <= report.cost
    with pytest.raises(ValueError, match="cost: expected one of .*'watts'"):
        mess.search(table, max_drop=0.2, cost_limits={"watts:p95": 1.0})


def losing_table():
    """The final exit costs 10; a gate in front of it makes images that go on cost more."""
    confidence = np.random.default_rng(0).random((3, 1, 40))
    table = right_everywhere([60, 70, 80], [1.0, 5.0, 10.0], 40, confidence)
    disagreement = np.full((3, 40), 40)
    disagreement[2] = 0
    costs = {"macs": {**table.costs["macs"], "head": np.array([0.5, 0.5, 0.0])}}
    return replace(table, disagreement=disagreement, costs=costs)


def test_what_is_promised_costs_less_than_the_original():
    table = losing_table()
    found = [mess.guarantee(table, f"disagreement <= {limit} on average") for limit in (0.06, 0.1, 0.2, 0.3)]
    kept = [result for result in found if result.configuration is not None]
    assert 0 < len(kept) < len(found)
    assert all(result.configuration.promise["cost"] < result.baseline_cost for result in kept)


def test_a_promise_with_the_final_exit_required():
    result = mess.guarantee(
        losing_table(), "disagreement <= 0.2 on average", required_exits=["0:h", "final"], max_exits=2
    )
    assert [chosen.exit for chosen in result.configuration.exits] == ["0:h", "final"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "pixel-accuracy"}, r"search_options: expected some of .* got \['metric'\]"),
        ({"learn_share": 0.99}, "table: expected images enough to divide, at least 1 searched and 2 held out, got 40"),
    ],
)
def test_bad_options_of_a_promise(options, message):
    with pytest.raises(ValueError, match=message):
        mess.guarantee(losing_table(), "disagreement <= 0.2 with 90 %", **options)


def test_held_out_images_without_names_are_told_apart_by_what_is_on_them():
    table = losing_table()
    numbered = replace(table, images=tuple(str(i) for i in range(len(table.images))))
    promise = "disagreement <= 0.2 with 90 %"
    with pytest.raises(ValueError, match="held_out: expected other images than those searched"):
        mess.guarantee(numbered, promise, held_out=numbered)
    truth = numbered.ground_truth + np.arange(1, len(table.images) + 1)[:, None]
    others = replace(numbered, ground_truth=truth)
    part = replace(others.select(np.arange(9, 3, -1)), images=tuple("012345"))
    with pytest.raises(ValueError, match="held_out: expected other images than those searched"):
        mess.guarantee(others, promise, held_out=part)
    assert mess.guarantee(numbered, promise, held_out=others).held_out == len(table.images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"required_exits": ["0:h"], "forbidden_exits": ["0:h"]}, "expected different exits, got '0:h' in both"),
        ({"required_exits": ["0:h", "0:g"]}, "required_exits: expected one at a point, got '0:h' and '0:g' at one"),
    ],
)
def test_exits_that_cannot_be_together_are_named(options, message):
    table = losing_table()
    both = replace(table, exits=("0:h", "0:g", "final"), points=np.array([0, 0, 2]))
    with pytest.raises(ValueError, match=message):
        mess.search(both, max_cost_ratio=1.0, **options)


def test_one_held_out_image_is_too_few():
    table = losing_table()
    one = replace(table.select(np.array([0])), images=("z",))
    with pytest.raises(ValueError, match="held_out: expected at least 2 images, got 1"):
        mess.guarantee(table, "disagreement <= 0.2 with 90 %", held_out=one)


def test_a_class_without_ground_truth_has_no_drop(table):
    empty = replace(table, ground_truth=table.ground_truth * 0 + [1, *[0] * 5], intersection=table.intersection * 0)
    with pytest.raises(ValueError, match=f"max_class_drop: .* ground truth in the table, got '{table.class_names[3]}'"):
        mess.search(empty, max_drop=0.5, max_class_drop={table.class_names[3]: 0.1})


def run_search(*arguments):
    command = [sys.executable, "-m", "mess", "search", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def table_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("search") / "table.safetensors"
    as_calibration_table(synthetic_table(images=40, classes=4, points=3, heads=3, pixels=3), "val").save(path)
    return path


def test_simpler_ways_keep_to_what_is_required_and_forbidden(table_file):
    table = CalibrationTable.load(table_file)
    names = [name for name in table.exits if name != "final"]
    for flags in (["--forbid", names[0]], ["--forbid", "final"], ["--require", names[0], "--require", names[4]]):
        found = run_search(table_file, "--accuracy-drop", 20, *flags)
        assert found.returncode == 0, found.stderr
        assert "simpler ways" in found.stdout
    one = functools.partial(mess.search, table, max_drop=0.2)
    required = [names[0], names[4]]
    simple = baselines(
        table, functools.partial(one, required_exits=required), max_exits=3, minimises_cost=True, required=required
    )
    assert simple["single exit"] is None
    assert simple["uniform"] is None  # other heads at its exits
    assert set(required) <= {chosen.exit for chosen in simple["greedy"].exits}
    simple = baselines(
        table,
        functools.partial(one, forbidden_exits=names[:3]),
        max_exits=3,
        minimises_cost=True,
        forbidden=names[:3],
    )
    exact = one(forbidden_exits=names[:3]).best
    for configuration in simple.values():
        if configuration is not None:
            assert not {chosen.exit for chosen in configuration.exits} & set(names[:3])
            assert configuration.promise["cost"] >= exact.promise["cost"]


@pytest.mark.parametrize("goal", [{"min_accuracy": 0.1}, {"max_cost": 1e9}])
def test_of_equal_baselines_the_better_one_is_told(goal):
    """Two heads cost the same, or reach the same: the search breaks such ties by the other number, and so do they."""
    is_cost = "min_accuracy" in goal
    confidence = np.tile(np.linspace(0, 1, 10), (3, 1, 1))
    table = right_everywhere([40, 60, 80] if is_cost else [60, 60, 80], [1.0, 1.0, 10.0], confidence=confidence)
    heads = np.array([0.5, 0.5, 0.0]) if is_cost else np.array([0.7, 0.5, 0.0])
    costs = {"macs": {**table.costs["macs"], "head": heads}}
    table = replace(table, exits=("0:g", "0:h", "final"), points=np.array([0, 0, 1]), model=("a",), costs=costs)
    both = baselines(table, functools.partial(mess.search, table, **goal), max_exits=2, minimises_cost=is_cost)
    assert both["uniform"].exits[0].exit == "0:h"


def test_greedy_begins_with_what_is_required():
    """The required exit alone is not accurate enough; with the final one behind it, it is."""
    confidence = np.stack([np.linspace(0, 1, 10), np.ones(10)])[:, None]
    table = right_everywhere([50, 80], [1.0, 10.0], confidence=confidence)
    one = functools.partial(mess.search, table, max_drop=0.1, required_exits=["0:h"])
    simple = baselines(table, one, max_exits=2, minimises_cost=True, required=["0:h"])
    assert simple["single exit"] is None
    assert [chosen.exit for chosen in simple["greedy"].exits] == ["0:h", "final"]
    assert simple["greedy"].promise["cost"] == one(max_exits=2).best.promise["cost"]


def test_a_search_that_ran_out_of_time_does_not_say_that_nothing_is_there(table_file):
    names = CalibrationTable.load(table_file).exits
    found = run_search(table_file, "--accuracy-drop", 1, "--require", names[0], "--time-limit", 0)
    assert found.returncode == 1
    assert found.stdout.startswith("drop-1pp: nothing was found in time\n")
    assert "single exit: nothing satisfies the target" in found.stdout  # that was proven
    assert "greedy" not in found.stdout


def test_a_search_out_of_time_replaces_no_better_answer(table_file):
    """It begins with what is there; what is not of this table, or no configuration at all, it does not mind."""
    for flags, path in [
        (["--accuracy-drop", 3], "configurations/drop-3pp.json"),
        (["--budget", "0.7x"], "configurations/best-at-0.7x.json"),
        (["--accuracy-drop", 3, "--setting", "budgeted"], "configurations/drop-3pp-budgeted.json"),
        (["--front"], "front.json"),
        (["--front", "--setting", "anytime"], "front-anytime.json"),
    ]:
        assert run_search(table_file, *flags, "--no-baselines").returncode == 0
        proven = (table_file.parent / path).read_bytes()
        hurried = run_search(table_file, *flags, "--no-baselines", "--time-limit", 0)
        assert hurried.returncode == 0, hurried.stderr
        assert (table_file.parent / path).read_bytes() == proven
        other = json.loads(proven)
        (other[0] if isinstance(other, list) else other)["model"] = ["another"]
        for foreign in (b"{", b"[1]", json.dumps(other).encode()):
            (table_file.parent / path).write_bytes(foreign)
            assert run_search(table_file, *flags, "--no-baselines").returncode == 0
            assert (table_file.parent / path).read_bytes() == proven


def test_json_has_the_simpler_ways(table_file):
    found = json.loads(run_search(table_file, "--accuracy-drop", 4, "--json").stdout)["drop-4pp"]
    assert set(found["simpler"]) == {"single exit", "uniform", "greedy"}
    cost = found["configurations"][0]["promise"]["cost"]
    assert all(way is None or way["promise"]["cost"] >= cost for way in found["simpler"].values())
    found = json.loads(run_search(table_file, "--accuracy-drop", 4, "--json", "--no-baselines").stdout)["drop-4pp"]
    assert found["simpler"] == {}


def test_the_bar_says_what_bounds_the_best():
    said = []
    bar = SimpleNamespace(set=lambda done, total, text: said.append(text))
    state = mess_core.Progress(1, 2, 0.01, 0.1, 5.0, 0.5, 0.8, 9, 9)
    for target in (request.Target(max_drop=0.01), request.Target(max_cost_ratio=0.5), request.Target()):
        request.show(bar, state, target)
    assert [text.partition("certified")[2] for text in said] == [": none below 0.45", ": none above 88.00%", ""]


@on_posix
def test_ctrl_c_writes_the_best_known_where_there_is_no_answer(tmp_path):
    path = tmp_path / "table.safetensors"
    as_calibration_table(synthetic_table(images=300, classes=8, points=6, heads=16, pixels=8), "val").save(path)
    code = """
import os, signal
import mess.cli
from mess.searching import request

def show(bar, state, target):
    if state.cost is not None:  # something is known
        os.kill(os.getpid(), signal.SIGINT)

request.show = show
signal.signal(signal.SIGINT, signal.default_int_handler)  # Python's own: a background job ignores the signal
mess.cli.main()
"""
    command = [sys.executable, "-c", code, "search", str(path), "--accuracy-drop", "1", "--max-exits", "5"]
    answer = tmp_path / "configurations" / "drop-1pp-max-exits-5.json"
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert found.returncode == 130, found.stderr
    assert "search drop-1pp-max-exits-5: interrupted; the best known is in" in found.stdout
    best = mess.Configuration.load(answer)
    assert mess.searching.evaluate(best, CalibrationTable.load(path)).cost == best.promise["cost"]
    before = answer.read_bytes()
    again = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert again.returncode == 130
    assert "is what an earlier search found" in " ".join(again.stdout.split())
    assert answer.read_bytes() == before


def test_answers_to_different_questions_have_different_names(table_file):
    folder = table_file.parent / "configurations"
    first = CalibrationTable.load(table_file).exits[0]
    for flags, name in [
        ([], "drop-20pp"),
        (["--max-exits", 2], "drop-20pp-max-exits-2"),
        (["--min-share", 0.05, "--cost-limit", "max=2x"], "drop-20pp-min-share-0.05-cost-limit-max=2"),
        (
            ["--forbid", first, "--image-thresholds", 5],
            f"drop-20pp-image-thresholds-5-forbid-{first.replace(':', '_')}",
        ),
    ]:
        assert run_search(table_file, "--accuracy-drop", 20, *flags).returncode == 0
        assert (folder / f"{name}.json").is_file(), sorted(folder.iterdir())
    # nothing satisfies this, which is no answer to the others
    assert run_search(table_file, "--accuracy-drop", 20, "--cost-limit", "max=0.0001x").returncode == 1
    assert (folder / "drop-20pp.json").is_file()
    assert len(told_apart(SearchSettings(forbidden_exits=tuple(f"{i}:fcn-r8-b0" for i in range(99))))) < 130
    assert told_apart(SearchSettings(max_class_drop={"car": 0.05})) == "-class-drop-car=5"
    names = {told_apart(SearchSettings(max_class_drop={label: 0.1})) for label in ("a b", "a/b", "a_b", "\u6c34" * 200)}
    assert len(names) == 4
    assert all(name.isascii() and len(name) < 130 for name in names)
    one, other = (SearchSettings(required_exits=exits) for exits in (("0:a", "1:b"), ("1:b", "0:a")))
    assert told_apart(one) == told_apart(other) == "-require-0_a-1_b"


def test_json_has_null_where_there_is_no_number(table_file):
    found = run_search(table_file, "--min-accuracy", 99.99, "--json")
    said = json.loads(found.stdout, parse_constant=pytest.fail)
    assert said["miou-99.99"]["status"] == "infeasible"
    assert said["miou-99.99"]["bound"] is None


def test_another_metric_is_told_apart(table_file):
    table = CalibrationTable.load(table_file)
    final = table.exits.index("final")
    accuracy = table.intersection[final].sum() / table.ground_truth.sum()
    assert exit_accuracy(table, final, "pixel-accuracy") == pytest.approx(accuracy)
    result = mess.search(table, setting="anytime", max_drop=0.0, metric="pixel-accuracy")
    assert result.best.promise["last_accuracy"] == pytest.approx(accuracy)
    assert result.best.promise["metric"] == "pixel-accuracy"
    searched = mess.search(table, max_cost_ratio=0.9, metric="pixel-accuracy").best
    assert mess.evaluate(searched, table).accuracy == searched.promise["accuracy"]
    by_iou = mess.evaluate(searched, table, metric="mean-iou")
    assert by_iou.accuracy == pytest.approx(np.nanmean(by_iou.iou))
    assert run_search(table_file, "--accuracy-drop", 7, "--metric", "pixel-accuracy").returncode == 0
    assert run_search(table_file, "--accuracy-drop", 7).returncode == 0
    folder = table_file.parent / "configurations"
    assert {"drop-7pp.json", "drop-7pp-pixel-accuracy.json"} <= {path.name for path in folder.iterdir()}
    refused = run_search(table_file, "--guarantee", "disagreement <= 0.4 with 90 %", "--metric", "pixel-accuracy")
    assert refused.returncode == 2
    assert "--metric: expected none beside --guarantee" in refused.stderr


def test_one_target_has_a_picture_and_what_nothing_satisfies_has_none(table_file):
    picture = table_file.parent / "pictures" / "miou-40-anytime.png"
    command = (table_file, "--setting", "anytime", "--json")
    found = run_search(*command, "--min-cost", "--min-accuracy", 40)
    assert found.returncode == 0, found.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    best = json.loads(found.stdout)["miou-40"]["configurations"][0]
    table = CalibrationTable.load(table_file).search_table("macs")
    horizon = mess_core.evaluate(table, mess_core.Configuration((len(table.points) - 1,))).found.cost
    chains = [c for n in (1, 2, 3) for c in combinations(range(len(table.points)), n)]
    chains = [c for c in chains if (np.diff(table.points[list(c)]) > 0).all()]
    every = [
        mess_core.evaluate(table, mess_core.Configuration(c), setting="anytime", horizon=horizon).found for c in chains
    ]
    assert best["promise"]["cost"] == min(found.cost for found in every if found.accuracy >= 0.4)
    path = picture.with_name("miou-99-anytime.png")
    path.write_bytes(b"of an earlier search")
    assert run_search(*command, "--min-accuracy", 99).returncode == 1
    assert not path.exists()


def test_the_picture_of_the_trade_off_is_of_its_metric(table_file, monkeypatch, tmp_path):
    table = CalibrationTable.load(table_file)
    drawn = []
    monkeypatch.setattr(charts, "save", lambda figure, path: drawn.append(figure))
    for metric, setting in (("mean-iou", "input-dependent"), ("pixel-accuracy", "budgeted"), ("mean-iou", "anytime")):
        front = mess.search(table, metric=metric, setting=setting, max_exits=2)
        charts.tradeoff_figure(table, {"front": front}, tmp_path / "x.png", metric=metric, setting=setting)
    labels = [figure.axes[0].get_ylabel() for figure in drawn]
    assert labels == ["mean IoU (%)", "pixel accuracy (%)", "mean IoU (%), mean over cut-offs"]
    singles = drawn[1].axes[0].collections[0].get_offsets()[:, 1]
    expected = table.intersection.sum(axis=(1, 2)) / table.ground_truth.sum()
    np.testing.assert_allclose(singles, 100 * expected)
    assert not drawn[2].axes[0].collections  # single exits have no mean over cut-offs
