"""The search: brute force on small tables, the definition, laws, interruption."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mess_core
from mess_core import Configuration, Gate, SearchTable
from tests.oracles import search as oracle

TOLERANCE = 1e-12

on_posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and limits of POSIX")


def random_table(
    seed: int, *, points=3, heads=2, images=6, classes=3, pixels=2, levels=4, round_costs=True, absent=0.0
) -> SearchTable:
    """A table with ties in everything, so that tie-breaks and boundaries are met; or with costs that do not add up, or
    with a share of (image, class) where no exit predicts any."""
    rng = np.random.default_rng(seed)
    exits = points * heads + 1
    truth = rng.integers(0, 30, (images, classes))
    truth[0, 0] += 1  # at least one class is present
    predicted = rng.integers(0, 30, (exits, images, classes))
    intersection = (np.minimum(predicted, truth) * rng.integers(0, 4, predicted.shape) // 3).clip(0)
    backbone = np.sort(rng.integers(1, 20, points + 1)).astype(float)
    scale = 1.0 if round_costs else rng.random() * 10.0 ** rng.integers(-6, 9)
    odd = 0.0 if round_costs else rng.random(exits)
    point = np.array([*np.repeat(np.arange(points), heads), points])
    some = rng.random((images, classes)) >= absent
    intersection, predicted = intersection * some, predicted * some
    return SearchTable(
        intersection=intersection,
        predicted=predicted,
        ground_truth=truth,
        image_confidence=rng.integers(0, levels + 1, (exits, pixels, images)) / levels,
        points=point,
        backbone_cost=backbone[point] * scale,
        head_cost=(np.array([*rng.integers(0, 5, exits - 1), 0]) + odd) * scale,
        policy_cost=(np.array([*rng.integers(0, 2, exits - 1), 0]) / 2 + odd) * scale,
    )


tables = st.builds(
    random_table,
    st.integers(0, 10**6),
    points=st.integers(1, 3),
    heads=st.integers(1, 2),
    images=st.integers(1, 6),
    classes=st.integers(1, 4),
    pixels=st.integers(1, 2),
    round_costs=st.booleans(),
    absent=st.sampled_from([0.0, 0.6]),
)


usual = settings().max_examples
thousand = settings(max_examples=max(1000, usual) if usual >= 150 else usual)
"""Tables against brute force, fewer in the quick lane."""


def all_values(table: SearchTable, max_exits: int) -> np.ndarray:
    """(cost, accuracy) of every configuration, by brute force."""
    return np.array([oracle.evaluate(table, c)[:2] for c in oracle.configurations(table, max_exits)])


@thousand
@given(tables, st.integers(1, 3), st.floats(0, 1))
def test_least_cost_equals_brute_force(table, max_exits, quantile):
    values = all_values(table, max_exits)
    target = float(np.quantile(values[:, 1], quantile, method="nearest"))
    outcome = mess_core.search(table, min_accuracy=target - TOLERANCE, max_exits=max_exits, image_thresholds=None)
    best = values[values[:, 1] >= target - TOLERANCE, 0].min()
    assert outcome.status == "optimal"
    assert outcome.best.cost == pytest.approx(best, rel=TOLERANCE)


@given(
    st.builds(
        random_table,
        st.integers(0, 10**6),
        heads=st.integers(1, 2),
        images=st.integers(4, 5),
        classes=st.integers(2, 4),
        pixels=st.just(1),
    ),
    st.floats(0, 1),
)
def test_four_exits_equal_brute_force(table, quantile):
    values = all_values(table, 4)
    target = float(np.quantile(values[:, 1], quantile, method="nearest"))
    cheapest = mess_core.search(table, min_accuracy=target - TOLERANCE, max_exits=4, image_thresholds=None).best
    assert cheapest.cost == pytest.approx(values[values[:, 1] >= target - TOLERANCE, 0].min(), rel=TOLERANCE)
    limit = cheapest.cost * (1 + TOLERANCE)
    best = mess_core.search(table, max_cost=limit, max_exits=4, image_thresholds=None).best
    assert best.accuracy == pytest.approx(values[values[:, 0] <= limit, 1].max(), abs=TOLERANCE)


@pytest.mark.parametrize("max_exits", [3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_no_neighbour_and_no_random_configuration_beats_a_front_of_many_images(seed, max_exits):
    # more images than the engine's runs, so that runs hold several
    table = random_table(seed, points=4, heads=2, images=90, pixels=2, levels=40)
    front = mess_core.search(table, max_exits=max_exits, image_thresholds=None, resolution=0.05).found
    costs, accuracies = np.array([f.cost for f in front]), np.array([f.accuracy for f in front])
    assert len(front) > 3
    rng = np.random.default_rng(seed)
    levels = [[np.unique(table.image_confidence[e, p]) for p in range(2)] for e in range(len(table.points))]

    def check(exits: list[int], gates: list[Gate]) -> None:
        other = mess_core.evaluate(table, Configuration(tuple(exits), tuple(gates))).found
        if min(other.stopped) > 0:
            affordable = costs <= np.ceil(other.cost / 0.05) * 0.05 * (1 + 1e-9)
            assert accuracies[affordable].max() >= other.accuracy - TOLERANCE

    for found in front:
        exits, gates = found.configuration.exits, found.configuration.gates
        for at, gate in enumerate(gates):
            for level in levels[exits[at]][gate.pixel_threshold]:
                changed = [*gates[:at], Gate(gate.pixel_threshold, float(level)), *gates[at + 1 :]]
                check(list(exits), changed)
    for _ in range(2000):
        points = np.sort(rng.choice(np.unique(table.points), max_exits, replace=False))
        exits = [int(rng.choice(np.flatnonzero(table.points == point))) for point in points]
        pixels = rng.integers(0, 2, max_exits - 1)
        check(exits, [Gate(int(p), float(rng.choice(levels[e][p]))) for e, p in zip(exits, pixels, strict=False)])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("levels", [20, 100_000])
def test_what_says_the_same_has_the_same_front(seed, levels):
    """Too large for brute force: images and thresholds in another order, images twice or of weight 2, larger images,
    a copy of an exit that costs more. And points of the front are what their own searches find."""
    table = random_table(seed, points=4, heads=3, images=90, pixels=3, levels=levels, classes=4, round_costs=False)
    rng = np.random.default_rng(seed)

    def front(of: SearchTable) -> list[tuple[float, float]]:
        return [(found.cost, found.accuracy) for found in mess_core.search(of, resolution=0.0).found]

    expected = front(table)
    assert len(expected) > 20
    assert front(of_images(table, rng.permutation(90))) == expected
    assert front(replace(table, image_confidence=table.image_confidence[:, rng.permutation(3)])) == expected
    for double in (of_images(table, np.tile(np.arange(90), 2)), replace(table, image_weight=np.full(90, 2))):
        np.testing.assert_allclose(front(double), expected, rtol=1e-12)
    # counts of which 32 bits hold the sum of one or two; a power of 2 is exact
    counts = {name: getattr(table, name) for name in ("intersection", "predicted", "ground_truth")}
    scale = 2 ** int(np.log2((2**32 - 1) / max(value.max() for value in counts.values())))
    assert front(replace(table, **{name: value * scale for name, value in counts.items()})) == expected
    copied = [0, *range(len(table.points))]
    per_exit = [field.name for field in fields(table) if field.name not in ("ground_truth", "image_weight")]
    more = replace(table, **{name: getattr(table, name)[copied] for name in per_exit})
    more.head_cost[0] += 1e-3 * table.backbone_cost[0]
    assert front(more) == expected
    for cost, accuracy in [expected[i] for i in rng.integers(0, len(expected), 5)]:
        for goal in ({"max_cost": cost}, {"min_accuracy": accuracy}):
            best = mess_core.search(table, **goal).best
            assert (best.cost, best.accuracy) == (cost, accuracy)


def of_images(table: SearchTable, order: np.ndarray) -> SearchTable:
    return replace(
        table,
        intersection=table.intersection[:, order],
        predicted=table.predicted[:, order],
        ground_truth=table.ground_truth[order],
        image_confidence=table.image_confidence[:, :, order],
    )


@thousand
@given(tables, st.integers(1, 3), st.floats(0, 1))
def test_greatest_accuracy_equals_brute_force(table, max_exits, quantile):
    values = all_values(table, max_exits)
    limit = float(np.quantile(values[:, 0], quantile, method="nearest"))
    limit *= 1 + TOLERANCE
    outcome = mess_core.search(table, max_cost=limit, max_exits=max_exits, image_thresholds=None)
    best = values[values[:, 0] <= limit, 1].max()
    assert outcome.best.accuracy == pytest.approx(best, abs=TOLERANCE)


@thousand
@given(tables, st.integers(1, 3))
def test_front_equals_brute_force(table, max_exits):
    values = all_values(table, max_exits)
    front = mess_core.search(table, max_exits=max_exits, image_thresholds=None).found
    costs, accuracies = np.array([f.cost for f in front]), np.array([f.accuracy for f in front])
    assert (np.diff(costs) > 0).all()
    assert (np.diff(accuracies) > 0).all()
    for cost, accuracy in values:  # nothing beats the front, and the front is made of real values
        assert accuracies[costs <= cost * (1 + TOLERANCE)].max() >= accuracy - TOLERANCE
    for found in front:
        expected = oracle.evaluate(table, found.configuration)
        assert (found.cost, found.accuracy) == pytest.approx(expected[:2], rel=TOLERANCE)
        assert list(found.stopped) == expected[2]


@given(tables, st.data())
def test_evaluate_equals_the_definition(table, data):
    chosen = data.draw(st.sampled_from(list(oracle.configurations(table, 2))))
    evaluation = mess_core.evaluate(table, chosen)
    cost, accuracy, stopped = oracle.evaluate(table, chosen)
    assert (evaluation.found.cost, evaluation.found.accuracy) == pytest.approx((cost, accuracy), rel=TOLERANCE)
    assert list(evaluation.found.stopped) == stopped
    assert np.bincount(evaluation.position, minlength=len(stopped)).tolist() == stopped


@given(tables)
def test_found_values_are_those_of_evaluate_bit_for_bit(table):
    for found in mess_core.search(table, image_thresholds=None).found:
        assert mess_core.evaluate(table, found.configuration).found == found


@given(tables)
def test_budgeted_is_the_best_single_exit(table):
    values = [oracle.evaluate(table, Configuration((e,)))[:2] for e in range(len(table.points))]
    limit = sorted(v[0] for v in values)[len(values) // 2]
    outcome = mess_core.search(table, setting="budgeted", max_cost=limit)
    assert outcome.best.accuracy == pytest.approx(max(a for c, a in values if c <= limit), abs=TOLERANCE)


@given(tables, st.floats(0.5, 30))
def test_anytime_equals_brute_force(table, horizon):
    chains = {c.exits for c in oracle.configurations(table, 3)}
    best = max(oracle.anytime(table, exits, horizon)[1] for exits in chains)
    outcome = mess_core.search(table, setting="anytime", max_cost=1e9, horizon=horizon, max_exits=3)
    assert outcome.best.accuracy == pytest.approx(best, abs=TOLERANCE)
    cost, accuracy = oracle.anytime(table, outcome.best.configuration.exits, horizon)
    assert (outcome.best.cost, outcome.best.accuracy) == pytest.approx((cost, accuracy), abs=TOLERANCE)


def test_anytime_can_bind_the_last_prediction():
    table = random_table(3)
    accuracy = [mess_core.evaluate(table, Configuration((e,))).found.accuracy for e in range(len(table.points))]
    least = sorted(accuracy)[-2]
    found = mess_core.search(table, setting="anytime", max_cost=1e9, min_final_accuracy=least).best
    assert accuracy[found.configuration.exits[-1]] >= least


def test_by_hand():
    # two images, one class; the early exit is right on the first image only and sure of it
    table = SearchTable(
        intersection=np.array([[[10], [0]], [[10], [10]]]),
        predicted=np.array([[[10], [0]], [[10], [10]]]),
        ground_truth=np.array([[10], [10]]),
        image_confidence=np.array([[[0.9, 0.2]], [[0.0, 0.0]]]),
        points=np.array([0, 1]),
        backbone_cost=np.array([1.0, 10.0]),
        head_cost=np.array([0.5, 0.0]),
        policy_cost=np.array([0.25, 0.0]),
    )
    best = mess_core.search(table, min_accuracy=1.0, image_thresholds=None).best
    assert best.configuration == Configuration((0, 1), (Gate(0, 0.9),))
    assert best.cost == (1.75 + 10.75) / 2
    assert best.stopped == (1, 1)
    assert mess_core.search(table, min_accuracy=1.1).status == "infeasible"
    with pytest.raises(LookupError, match="infeasible"):
        _ = mess_core.search(table, min_accuracy=1.1).best


@given(tables)
def test_bounds_taken_from_evaluate_are_met_exactly(table):
    for exit_index in range(len(table.points)):
        found = mess_core.evaluate(table, Configuration((exit_index,)), setting="budgeted").found
        assert mess_core.search(table, min_accuracy=found.accuracy).status == "optimal"
        assert mess_core.search(table, max_cost=found.cost).status == "optimal"


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("target", [{"min_accuracy": 0.3}, {"max_cost": 12.0}, {}])
@pytest.mark.parametrize("seed", range(4))
def test_thread_count_does_not_matter(threads, target, seed):
    table = random_table(seed, points=4, heads=3, images=14, round_costs=seed % 2 == 0)
    reference = mess_core.search(table, threads=3, **target).found
    assert mess_core.search(table, threads=threads, **target).found == reference


@given(tables)
def test_more_freedom_never_makes_the_optimum_worse(table):
    accuracy = mess_core.evaluate(table, Configuration((len(table.points) - 1,))).found.accuracy
    costs = [
        mess_core.search(table, min_accuracy=accuracy, max_exits=k, image_thresholds=None).best.cost for k in (1, 2, 3)
    ]
    assert costs == sorted(costs, reverse=True)
    coarse = mess_core.search(table, min_accuracy=accuracy, image_thresholds=2).best.cost
    assert coarse >= costs[-1]


def test_an_image_threshold_above_one_disables_an_exit():
    table = random_table(5)
    last = len(table.points) - 1
    found = mess_core.evaluate(table, Configuration((0, last), (Gate(0, 1.5),))).found
    assert found.stopped == (0, 6)


def test_time_limit_stops_with_what_is_known():
    table = random_table(1, points=5, heads=8, images=60, pixels=8, levels=1000)
    outcome = mess_core.search(table, max_exits=5, image_thresholds=None, time_limit=0.3)
    assert outcome.status == "stopped"
    assert outcome.gap > 0
    for found in outcome.found:
        assert mess_core.evaluate(table, found.configuration).found == found


def test_progress_is_reported():
    calls: list[mess_core.Progress] = []
    outcome = mess_core.search(random_table(2), progress=calls.append)
    last = calls[-1]
    assert last.done == last.total > 0
    assert (last.gap, last.covered) == (0.0, pytest.approx(outcome.space))
    assert (last.cost, last.accuracy) == (outcome.found[-1].cost, outcome.found[-1].accuracy)


def test_an_error_in_the_progress_function_stops_the_search():
    table = random_table(1, points=5, heads=8, images=60, pixels=8, levels=1000)

    def fail(progress):
        raise RuntimeError("shown to the user")

    with pytest.raises(RuntimeError, match="shown to the user"):
        mess_core.search(table, max_exits=5, image_thresholds=None, progress=fail)


@pytest.mark.parametrize("power", [-1000, -60, 300])
@pytest.mark.parametrize("seed", range(12))
def test_the_unit_of_cost_changes_nothing(seed, power):
    """Costs times a power of two, which rounds nothing: the same exits, thresholds and accuracies, to the last bit."""
    table = random_table(seed)
    scale = 2.0**power
    costs = {name: getattr(table, name) * scale for name in ("backbone_cost", "head_cost", "policy_cost")}
    other = replace(table, **costs)
    for target in ({"min_accuracy": 0.3}, {"max_cost": 10.0}, {}):
        units = {name: value * scale if name == "max_cost" else value for name, value in target.items()}
        one, two = mess_core.search(table, max_exits=3, **target), mess_core.search(other, max_exits=3, **units)
        assert one.status == two.status
        assert [(f.configuration, f.accuracy, f.cost * scale) for f in one.found] == [
            (f.configuration, f.accuracy, f.cost) for f in two.found
        ]


@on_posix
def test_ctrl_c_interrupts_with_the_best_known():
    code = """
import os, pickle, signal
import mess_core
from tests.core.test_search import random_table

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
table = random_table(1, points=5, heads=8, images=60, pixels=8, levels=1000)
sent = []

def progress(state):
    if state.cost is not None and state.evaluated > 1000 and not sent:  # before the first task
        sent.append(os.kill(os.getpid(), signal.SIGINT))

try:
    mess_core.search(table, max_exits=6, progress=progress)
except mess_core.SearchInterrupted as stopped:
    for outcome in (stopped.outcome, pickle.loads(pickle.dumps(stopped)).outcome):
        assert outcome.status == "stopped"
        assert outcome.gap > 0
        assert outcome.found
        for known in outcome.found:
            assert mess_core.evaluate(table, known.configuration).found == known
    raise
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert "SearchInterrupted: search: stopped, " in found.stderr


def test_an_error_of_progress_ends_the_search_as_it_is():
    def fails(_):
        raise OSError("no terminal")

    with pytest.raises(OSError, match="no terminal"):
        mess_core.search(random_table(2), max_exits=2, progress=fails)


METRICS = ("mean-iou", "pixel-accuracy", "mean-class-accuracy", "frequency-weighted-iou")


@st.composite
def weighted_tables(draw):
    """Tables with image weights and a second cost column."""
    table = draw(tables)
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    weights = rng.integers(1, 4, table.ground_truth.shape[0]) if draw(st.booleans()) else None
    other = rng.permutation(table.head_cost) * 2.0
    columns = {
        "backbone_cost": np.stack([table.backbone_cost, table.backbone_cost**2]),
        "head_cost": np.stack([table.head_cost, other]),
        "policy_cost": np.stack([table.policy_cost, table.policy_cost]),
    }
    return replace(table, image_weight=weights, **columns)


@given(weighted_tables(), st.sampled_from(METRICS), st.integers(0, 1), st.data())
def test_every_metric_weight_and_column_equals_brute_force(table, metric, column, data):
    everything = [(c, oracle.evaluate(table, c, metric, column)) for c in oracle.configurations(table, 3)]
    chosen, expected = data.draw(st.sampled_from(everything))
    evaluation = mess_core.evaluate(table, chosen, metric=metric, cost_column=column)
    assert (evaluation.found.cost, evaluation.found.accuracy) == pytest.approx(expected[:2], rel=TOLERANCE)
    target = expected[1] - TOLERANCE
    best = min(cost for _, (cost, accuracy, _) in everything if accuracy >= target)
    outcome = mess_core.search(table, min_accuracy=target, metric=metric, cost_column=column)
    assert outcome.best.cost == pytest.approx(best, rel=TOLERANCE)
    limit = expected[0] * (1 + TOLERANCE)
    best = max(accuracy for _, (cost, accuracy, _) in everything if cost <= limit)
    outcome = mess_core.search(table, max_cost=limit, metric=metric, cost_column=column)
    assert outcome.best.accuracy == pytest.approx(best, rel=TOLERANCE)


def worst_cost(table, configuration, share, column):
    """The least cost that at least `share` of the weighted images does not exceed."""
    paid, w = np.array(oracle.costs_paid(table, configuration, column)), oracle.weights(table)
    order = np.argsort(paid, kind="stable")
    reached = np.cumsum(w[order]) / w.sum() >= share
    return paid[order][reached.argmax()]


def satisfies(table, configuration, options):
    """The constraints of `search`, by their definition."""
    w, exits = oracle.weights(table), configuration.exits
    positions = np.array(oracle.exits_taken(table, configuration))
    shares = [w[positions == p].sum() / w.sum() for p in range(len(exits))]
    if min(shares) <= 0 or min(shares) < options["min_share"]:
        return False
    if set(options["forbidden_exits"]) & set(exits) or set(options["required_exits"]) - set(exits):
        return False
    of_class = oracle.iou(table, [exits[p] for p in positions])
    if any(of_class[c] < floor for c, floor in options["min_class_iou"].items()):
        return False
    for limit in options["cost_limits"]:
        everything = Configuration(exits, tuple(Gate(0, 2.0) for _ in exits[1:]))  # nobody leaves early
        value = {
            "mean": lambda c=limit.column: oracle.evaluate(table, configuration, column=c)[0],
            "total": lambda c=limit.column, e=everything: oracle.costs_paid(table, e, c)[0],
            "p50": lambda c=limit.column: worst_cost(table, configuration, 0.5, c),
            "max": lambda c=limit.column: worst_cost(table, configuration, 1.0, c),
        }[limit.statistic]()
        if value > limit.at_most:
            return False
    return True


@given(weighted_tables(), st.data())
def test_constraints_equal_brute_force(table, data):
    everything = list(oracle.configurations(table, 3))
    some = data.draw(st.sampled_from(everything))  # limits around what some configuration needs, so that they bind
    exits = range(len(table.points))
    of_class = oracle.iou(table, [some.exits[p] for p in oracle.exits_taken(table, some)])
    present = [int(c) for c in np.flatnonzero(~np.isnan(of_class))]
    floors = data.draw(st.lists(st.sampled_from(present), max_size=2, unique=True))
    limits = []
    for statistic in data.draw(st.lists(st.sampled_from(["mean", "total", "p50", "max"]), max_size=2, unique=True)):
        column = data.draw(st.integers(0, 1))
        around = {
            "mean": oracle.evaluate(table, some, column=column)[0],
            "total": max(oracle.costs_paid(table, some, column)),
            "p50": worst_cost(table, some, 0.5, column),
            "max": worst_cost(table, some, 1.0, column),
        }[statistic]
        limits.append(mess_core.CostLimit(around * (1 + 1e-9), statistic, column))
    options = {
        "min_share": data.draw(st.sampled_from([0.0, 0.2, 0.5])),
        "required_exits": data.draw(st.sampled_from([[], [some.exits[0]], list(some.exits)])),
        "forbidden_exits": data.draw(
            st.lists(st.sampled_from(sorted(set(exits) - set(some.exits)) or [0]), max_size=1)
        ),
        "min_class_iou": {c: float(of_class[c]) * (1 - 1e-9) for c in floors},
        "cost_limits": limits,
    }
    if set(options["forbidden_exits"]) & set(options["required_exits"]):
        options["forbidden_exits"] = []
    values = [oracle.evaluate(table, c)[:2] for c in everything if satisfies(table, c, options)]
    outcome = mess_core.search(table, max_cost=1e9, **options)
    front = mess_core.search(table, **options)
    if not values:
        assert outcome.status == front.status == "infeasible"
        return
    assert outcome.best.accuracy == pytest.approx(max(a for _, a in values), rel=TOLERANCE)
    for cost, accuracy in values:
        assert max(f.accuracy for f in front.found if f.cost <= cost * (1 + TOLERANCE)) >= accuracy - TOLERANCE
    for found in front.found:
        assert satisfies(table, found.configuration, options)


@given(tables, st.floats(0.001, 1))
def test_a_coarse_front_has_the_best_for_every_multiple_of_the_resolution(table, share):
    exact = mess_core.search(table).found
    resolution = share * exact[-1].cost
    expected = []
    for step in range(int(1 / share) + 2):
        affordable = [f for f in exact if f.cost <= step * resolution]
        if affordable and affordable[-1] not in expected:
            expected.append(affordable[-1])
    assert mess_core.search(table, resolution=resolution).found == tuple(expected)


@given(tables, st.integers(2, 4))
def test_parts_together_are_the_whole(table, count):
    whole = mess_core.search(table, max_cost=1e9).best
    parts = [mess_core.search(table, max_cost=1e9, part=(i, count)) for i in range(count)]
    assert sum(p.covered - len(table.points) for p in parts) == pytest.approx(parts[0].space - len(table.points))
    assert max(p.best.accuracy for p in parts) == whole.accuracy
    assert whole in [p.best for p in parts]


@given(tables, st.data())
def test_what_is_known_changes_nothing(table, data):
    some = data.draw(st.sampled_from(list(oracle.configurations(table, 3))))
    target = mess_core.evaluate(table, some).found.accuracy
    assert mess_core.search(table, min_accuracy=target, known=[some]).found == (
        mess_core.search(table, min_accuracy=target).found
    )


def test_what_is_known_is_held_to_limits_of_classes_and_weights():
    """Images of the table, and not those at the same places of the order in which the search has them."""
    told_apart = 0
    for seed in range(40):
        table = random_table(seed, images=12, levels=20, absent=0.6)
        table = replace(table, image_weight=np.random.default_rng(seed).integers(1, 9, 12))
        free = mess_core.search(table, min_accuracy=0.05, image_thresholds=None).best
        for limits in ({"min_class_iou": {0: 0.15}}, {"min_class_iou": {1: 0.3}}, {"min_share": 0.2}):
            limited = mess_core.search(table, min_accuracy=0.05, **limits)
            known = [free.configuration, *(found.configuration for found in limited.found)]
            told_apart += limited.found[:1] != (free,)
            for some in known:
                assert mess_core.search(table, min_accuracy=0.05, known=[some], **limits).found == limited.found
            if limited.found:  # the search takes what is known alone where its time has passed
                alone = mess_core.search(table, min_accuracy=0.05, known=known[1:], time_limit=0.0, **limits)
                assert alone.found == limited.found
    assert told_apart > 20


def test_arrays_with_a_mask_are_refused():
    """What is under the mask would be searched."""
    table = random_table(4)
    for name in ("ground_truth", "image_confidence", "backbone_cost"):
        masked = replace(table, **{name: np.ma.masked_equal(getattr(table, name), 0)})
        with pytest.raises(TypeError, match=f"{name}: expected an array without a mask"):
            mess_core.search(masked, min_accuracy=0.1)


def test_more_choices_of_points_than_memory():
    """2^25 of them would each have a plane, before anything looked at a time limit."""
    table = random_table(1, points=24, heads=1, images=2)
    with pytest.raises(ValueError, match="max_exits: expected fewer for so many exit points: at most 65536 choices"):
        mess_core.search(table, min_accuracy=0.1, max_exits=25)
    assert mess_core.search(table, max_cost=1e9, max_exits=4, time_limit=0.0).found
    required = {"max_exits": 13, "required_exits": list(range(13))}  # one choice
    assert mess_core.search(table, max_cost=1e9, **required).status in ("optimal", "infeasible")
    assert mess_core.search(table, max_cost=1e9, max_exits=25, setting="budgeted").status == "optimal"


def test_what_is_known_may_be_outside_the_space():
    table = random_table(4)
    known = mess_core.search(table, max_cost=1e9).best.configuration
    assert len(known.exits) > 1
    assert mess_core.search(table, max_cost=1e9, max_exits=1, known=[known]).found == (
        mess_core.search(table, max_cost=1e9, max_exits=1).found
    )
    forbidden = {"forbidden_exits": known.exits[:1]}
    assert mess_core.search(table, max_cost=1e9, known=[known], **forbidden).found == (
        mess_core.search(table, max_cost=1e9, **forbidden).found
    )


def test_an_infeasible_search_names_what_comes_nearest():
    table = random_table(5)
    outcome = mess_core.search(table, min_accuracy=1.0)
    assert outcome.status == "infeasible"
    assert outcome.nearest == mess_core.search(table, max_cost=1e9).best
    with pytest.raises(LookupError, match=r"infeasible; nearest: cost .*, accuracy 0\."):
        _ = outcome.best
    cheapest = mess_core.search(table, max_cost=0.0)
    assert cheapest.nearest.cost == min(mess_core.search(table).found, key=lambda f: f.cost).cost


def test_optimal_means_that_value_and_bound_agree_and_everything_is_covered():
    table = random_table(6)
    outcome = mess_core.search(table, min_accuracy=0.3)
    assert (outcome.bound, outcome.gap, outcome.covered) == (outcome.best.cost, 0.0, outcome.space)
    size = len(list(oracle.configurations(table, 3)))
    assert outcome.space == size


MIDDLE = {"points": 5, "heads": 8, "images": 120, "pixels": 4, "levels": 1000, "classes": 6}


def test_the_front_of_what_costs_nothing_is_its_best():
    table = random_table(3, points=3, heads=4, images=60, pixels=3, levels=1000, classes=5)
    free = replace(table, **{f"{name}_cost": np.zeros(13) for name in ("backbone", "head", "policy")})
    best = mess_core.search(free, max_cost=0.0)
    front = mess_core.search(free, resolution=0.0)
    assert front.found == best.found
    assert front.evaluated < 0.01 * front.space  # it was 0.6: nothing costs less, and that was looked for


def test_a_certified_gap_holds(tmp_path):
    table = random_table(11, **MIDDLE)
    final = mess_core.evaluate(table, Configuration((40,))).found
    target = final.accuracy * 0.9
    exact = mess_core.search(table, min_accuracy=target)
    for limit in (0.0, 0.05, 0.2, 0.5):
        stopped = mess_core.search(table, min_accuracy=target, time_limit=limit)
        assert stopped.bound <= exact.best.cost
        if stopped.found:
            assert stopped.best.cost >= exact.best.cost


def test_a_killed_search_goes_on_from_its_journal(tmp_path):
    table = random_table(11, **MIDDLE)
    journal = tmp_path / "search.journal"
    whole = mess_core.search(table, max_cost=15.0)
    code = (
        "import sys; from tests.core.test_search import random_table, MIDDLE; import mess_core;"
        "table = random_table(11, **MIDDLE); print('ready', flush=True);"
        "mess_core.search(table, max_cost=15.0, threads=1, journal=sys.argv[1])"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(journal)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (journal.is_file() and journal.read_bytes().count(b"done") > 20):
        time.sleep(0.002)
    process.kill()
    process.wait()
    lines = journal.read_text()
    done = lines.count("done")
    assert done > 20
    with journal.open("a") as file:
        file.write("done 000")  # killed in the middle of a line
    resumed = mess_core.search(table, max_cost=15.0, journal=journal)
    assert (resumed.status, resumed.found) == ("optimal", whole.found)
    assert journal.read_text().startswith(lines[: lines.rindex("\n") + 1])
    again = mess_core.search(table, max_cost=15.0, journal=journal)
    assert again.found == whole.found
    assert again.explored < whole.explored
    with pytest.raises(ValueError, match="journal: expected one of this table and search"):
        mess_core.search(table, max_cost=16.0, journal=journal)


@on_posix
def test_a_full_disk_is_told(tmp_path):
    code = (
        "import resource, sys; from tests.core.test_search import random_table; import mess_core;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300));"
        "mess_core.search(random_table(3), max_cost=15.0, journal=sys.argv[1])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "journal")]
    errors = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stderr
    assert "ValueError: journal: expected a file that can be written, got File too large" in errors


def test_damage_in_a_journal_costs_work_and_never_the_answer(tmp_path):
    """Lines lost, changed, glued or zeroed: what was proven with the help of a line that is gone is proven again."""
    table, path = random_table(3, points=4, heads=3, images=60, levels=30), tmp_path / "journal"
    whole = mess_core.search(table, max_cost=12.0, journal=path)
    text = path.read_bytes()
    found = [at for at in range(len(text)) if text.startswith(b"found", at)]
    assert found
    rng = np.random.default_rng(0)
    for at in found:
        end = text.index(b"\n", at)
        swapped = bytearray(text)
        swapped[rng.integers(at, end)] ^= 1 << rng.integers(8)
        zeroed = text[:at] + bytes(64) + text[at + 64 :]
        for damaged in (text[:at] + text[end + 1 :], text[: end - 3] + text[end + 1 :], bytes(swapped), zeroed):
            path.write_bytes(damaged)
            again = mess_core.search(table, max_cost=12.0, journal=path)
            assert (again.status, again.found) == (whole.status, whole.found)


@on_posix
def test_a_journal_that_could_not_be_written_is_not_gone_on_with_wrongly(tmp_path):
    """The disk is full in the middle of a configuration that was found, and has room again at once."""
    table, path = random_table(3, points=4, heads=3, images=60, levels=30), tmp_path / "journal"
    options = {"max_cost": 12.0, "threads": 1, "journal": path}
    whole = mess_core.search(table, **options)
    text = path.read_text()
    code = (
        "import os, resource, signal, sys, threading, mess_core; from tests.core.test_search import random_table\n"
        "table, limit = random_table(3, points=4, heads=3, images=60, levels=30), int(sys.argv[2])\n"
        "refused, wake = os.pipe()\n"
        "os.set_blocking(wake, False)\n"
        "signal.signal(signal.SIGXFSZ, lambda *_: None)\n"
        "signal.set_wakeup_fd(wake)\n"
        "def make_room():\n"
        "    os.read(refused, 1)\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))\n"
        "hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))\n"
        "threading.Thread(target=make_room, daemon=True).start()\n"
        "mess_core.search(table, max_cost=12.0, threads=1, journal=sys.argv[1])"
    )
    for at in [text.index("found"), text.rindex("found")]:
        path.unlink()
        command = [sys.executable, "-c", code, str(path), str(at + 7)]
        errors = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stderr
        assert "ValueError: journal: expected a file that can be written" in errors
        assert mess_core.search(table, **options).found == whole.found


OTHERS = [f"mess-search-journal {version} 0000\ndone" for version in (2, 3)]  # an older one, one of another search


@pytest.mark.parametrize("text", ['{"precious": 1}', "line one\nline two", *OTHERS, "m\n"])
def test_a_file_that_is_no_journal_of_this_search_is_left_alone(tmp_path, text):
    path = tmp_path / "notes"
    path.write_text(text)
    with pytest.raises(ValueError, match="journal: expected one of this table and search"):
        mess_core.search(random_table(3), max_cost=15.0, journal=path)
    assert path.read_text() == text


def test_a_journal_whose_first_line_is_torn_begins_again(tmp_path):
    path = tmp_path / "journal"
    whole = mess_core.search(random_table(3), max_cost=15.0, journal=path)
    lines = path.read_text()
    for length in (0, 5, 30, len(lines.splitlines()[0])):
        path.write_text(lines[:length])
        assert mess_core.search(random_table(3), max_cost=15.0, journal=path).found == whole.found
        assert path.read_text().splitlines()[0] == lines.splitlines()[0]


def two_exits(stopping: int, images: int) -> SearchTable:
    """So many images are right at the first exit and sure of it; the others need the second one."""
    sure = np.arange(images) < stopping
    right = np.stack([sure, np.ones(images, bool)]).astype(np.int64)[:, :, None]
    return SearchTable(
        intersection=right,
        predicted=np.ones_like(right),
        ground_truth=np.ones((images, 1), np.int64),
        image_confidence=np.stack([sure, ~sure]).astype(float)[:, None],
        points=np.array([0, 1]),
        backbone_cost=np.array([1.0, 10.0]),
        head_cost=np.zeros(2),
        policy_cost=np.zeros(2),
    )


@pytest.mark.parametrize("percent", [7, 14, 28, 29, 55, 57, 95])
def test_shares_are_met_exactly(percent):
    """0.07 * 100 is above 7 in float64."""
    table = two_exits(percent, 100)
    expected = (percent + 10.0 * (100 - percent)) / 100
    assert mess_core.search(table, min_accuracy=1.0, min_share=min(percent, 100 - percent) / 100).best.cost == expected
    limit = mess_core.CostLimit(1.0, f"p{percent}")
    assert mess_core.search(table, min_accuracy=1.0, cost_limits=[limit]).best.cost == expected
    limit = mess_core.CostLimit(1.0, f"p{percent + 1}")
    assert mess_core.search(table, min_accuracy=1.0, cost_limits=[limit]).status == "infeasible"


def test_a_cost_on_a_step_of_the_front_is_within_it():
    """0.07 / 0.01 is above 7 in float64."""
    right = np.array([50, 60])[:, None, None]
    for k in range(1, 200):
        table = SearchTable(
            intersection=right,
            predicted=right,
            ground_truth=np.array([[100]]),
            image_confidence=np.zeros((2, 1, 1)),
            points=np.arange(2),
            backbone_cost=np.array([k * 0.01, k * 0.01 + 0.005]),
            head_cost=np.zeros(2),
            policy_cost=np.zeros(2),
        )
        found = mess_core.search(table, setting="budgeted", resolution=0.01).found
        assert [f.cost for f in found] == [k * 0.01, k * 0.01 + 0.005]


def test_exits_that_are_required_twice_count_once():
    table = random_table(3)
    once = mess_core.search(table, max_cost=15.0, max_exits=2, required_exits=[1, 6])
    assert mess_core.search(table, max_cost=15.0, max_exits=2, required_exits=[1, 6, 1, 6]).found == once.found


def test_a_time_limit_that_never_comes_is_none():
    assert mess_core.search(random_table(3), max_cost=15.0, time_limit=1e30).status == "optimal"


@on_posix
@pytest.mark.parametrize("path", ["/dev/full", "/no/where/journal"])
def test_a_journal_is_a_file(path):
    with pytest.raises(ValueError, match="journal: expected a file that can be written, got"):
        mess_core.search(random_table(3), max_cost=15.0, journal=path)


def test_a_memory_mapped_table_is_read_where_it_lies(tmp_path):
    table = random_table(7)
    mapped = {}
    for name in ("intersection", "predicted", "ground_truth", "image_confidence", "points"):
        path = tmp_path / f"{name}.npy"
        np.save(path, np.ascontiguousarray(getattr(table, name)))
        mapped[name] = np.load(path, mmap_mode="r")
    assert mess_core.search(replace(table, **mapped)).found == mess_core.search(table).found
    given = mess_core._search._arrays(replace(table, **mapped))[: len(mapped)]
    assert all(np.shares_memory(array, mapped[name]) for array, name in zip(given, mapped, strict=True))


def test_constant_confidences_and_equal_exits():
    table = random_table(8)
    constant = replace(table, image_confidence=np.ones_like(table.image_confidence))
    assert all(len(f.configuration.exits) == 1 for f in mess_core.search(constant).found)
    twins = replace(table, intersection=table.intersection[[0] * 7], predicted=table.predicted[[0] * 7])
    accuracies = {f.accuracy for f in mess_core.search(twins).found}
    assert len(accuracies) == 1


def test_one_image_and_one_exit():
    one = random_table(9, points=1, heads=1, images=1, classes=1)
    single = replace(
        one,
        **{
            name: getattr(one, name)[:1]
            for name in (
                "intersection",
                "predicted",
                "image_confidence",
                "points",
                "backbone_cost",
                "head_cost",
                "policy_cost",
            )
        },
    )
    assert mess_core.search(single).found[0].configuration == Configuration((0,))
    assert mess_core.search(one).status == "optimal"


TABLE = random_table(0)
BAD = [
    ({"predicted": TABLE.predicted[:, :2]}, ValueError, r"predicted: expected shape \[7, 6, 3\], got \[7, 2, 3\]"),
    ({"ground_truth": TABLE.ground_truth[0]}, ValueError, r"ground_truth: expected 2 dimensions"),
    (
        {"ground_truth": TABLE.ground_truth * 0},
        ValueError,
        r"intersection: expected 0..=0|ground_truth: expected at least",
    ),
    ({"intersection": TABLE.intersection + 50}, ValueError, r"intersection: expected 0..="),
    ({"intersection": TABLE.intersection * 0.5}, TypeError, r"intersection: expected int64, got dtype float64"),
    ({"image_confidence": TABLE.image_confidence + 2}, ValueError, r"image_confidence: expected numbers in \[0, 1\]"),
    ({"image_confidence": TABLE.image_confidence * np.nan}, ValueError, r"image_confidence: .*NaN"),
    ({"head_cost": TABLE.head_cost + 1e101}, ValueError, r"head_cost: expected costs from 0 to 1e100"),
    ({"head_cost": -TABLE.head_cost - 1}, ValueError, r"head_cost: expected costs from 0 to 1e100"),
    ({"head_cost": TABLE.head_cost * np.nan}, ValueError, r"head_cost: expected costs from 0 to 1e100, .* NaN"),
    ({"policy_cost": TABLE.policy_cost * np.nan}, ValueError, r"policy_cost: expected costs from 0 to 1e100, .* NaN"),
    ({"backbone_cost": TABLE.backbone_cost * np.nan}, ValueError, r"backbone_cost: .* NaN"),
    ({"backbone_cost": TABLE.backbone_cost[::-1].copy()}, ValueError, r"backbone_cost: expected costs that grow"),
    ({"ground_truth": -TABLE.ground_truth}, ValueError, r"ground_truth: expected counts of 0 and more, got -"),
    ({"points": TABLE.points[:-1]}, ValueError, r"points: expected shape \[7\], got \[6\]"),
    ({"image_weight": np.zeros(6, int)}, ValueError, r"image_weight: expected integers from 1"),
    ({"image_weight": np.ones(6)}, TypeError, r"image_weight: expected int64, got dtype float64"),
    ({"head_cost": np.stack([TABLE.head_cost] * 2)}, ValueError, r"head_cost: expected shape \[1, 7\], got \[2, 7\]"),
    ({"intersection": TABLE.intersection[:, :0], "predicted": TABLE.predicted[:, :0]}, ValueError, "intersection: exp"),
]


@pytest.mark.parametrize("case", range(len(BAD)))
def test_a_table_that_contradicts_itself_is_refused(case):
    change, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        mess_core.search(replace(TABLE, **change))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_accuracy": 0.5, "max_cost": 3.0}, "min_accuracy: expected None beside max_cost"),
        ({"setting": "static"}, "setting: expected 'budgeted', 'anytime' or 'input-dependent', got 'static'"),
        ({"max_exits": 0}, "max_exits: expected at least 1, got 0"),
        ({"max_exits": 32}, "max_exits: expected at most 31, got 32"),
        ({"image_thresholds": 0}, "image_thresholds: expected at least 1, got 0"),
        ({"min_accuracy": float("nan")}, "min_accuracy: expected a number, got NaN"),
        ({"time_limit": -1.0}, "time_limit: expected seconds >= 0, got -1"),
        ({"time_limit": float("nan")}, "time_limit: expected seconds >= 0, got NaN"),
        ({"setting": "anytime", "min_final_accuracy": float("nan")}, "min_final_accuracy: expected a number, got NaN"),
        ({"resolution": 1e-310}, "resolution: expected 0, or .* and more, got"),
        ({"setting": "anytime", "horizon": 0.0}, "horizon: expected a finite cost above 0"),
        ({"metric": "dice"}, "metric: expected 'mean-iou', 'pixel-accuracy', .* got 'dice'"),
        ({"cost_column": 1}, "cost_column: expected an index below 1, got 1"),
        ({"resolution": -1.0}, "resolution: expected a finite cost >= 0"),
        ({"min_share": 1.5}, r"min_share: expected a share in \[0, 1\]"),
        ({"required_exits": [7]}, "required_exits: expected indices below 7, got 7"),
        ({"required_exits": [1], "forbidden_exits": [1]}, "required_exits: expected exits that are not forbidden"),
        ({"required_exits": [0, 1]}, "required_exits: expected one exit a point"),
        ({"min_class_iou": {3: 0.5}}, "min_class_iou: expected classes with ground truth, got 3"),
        ({"min_class_iou": {0: 2.0}}, r"min_class_iou: expected IoU in \[0, 1\]"),
        ({"cost_limits": [mess_core.CostLimit(1.0, "median")]}, "cost_limits: expected the statistic"),
        ({"cost_limits": [mess_core.CostLimit(1.0, "max", 3)]}, "cost_limits: expected columns below 1"),
        ({"cost_limits": [mess_core.CostLimit(1.0, "p²")]}, "cost_limits: expected the statistic"),
        ({"cost_limits": [mess_core.CostLimit(1.0, 95)]}, "cost_limits: expected a string, got int 95"),
        ({"cost_limits": [mess_core.CostLimit("1 ms")]}, "cost_limits: expected a number, got str '1 ms'"),
        ({"cost_column": "latency"}, "cost_column: expected an integer, got str 'latency'"),
        ({"part": 5}, r"part: expected \(i, m\) with 0 <= i < m, got 5"),
        ({"min_accuracy": 10**400}, "min_accuracy: expected a number, got int '1000"),
        ({"known": [Configuration((0, 6), (Gate(0, None),))]}, "gates: expected a number, got NoneType 'None'"),
        ({"part": (0,)}, r"part: expected \(i, m\) with 0 <= i < m, got \(0,\)"),
        ({"min_class_iou": {0: None}}, "min_class_iou: expected a number, got NoneType 'None'"),
        ({"part": (2, 2)}, "part: expected"),
        ({"known": [Configuration((99,))]}, "exits: expected indices"),
        ({"known": [Configuration((-1,))]}, "exits: expected at least 0, got -1"),
        ({"setting": "anytime", "min_share": 0.1}, "min_share: expected 0 when anytime"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        mess_core.search(TABLE, **options)


@pytest.mark.parametrize("argument", ["setting", "metric"])
def test_what_is_no_word_is_refused(argument):
    with pytest.raises(TypeError, match=f"{argument}: expected a string, got float 0.5"):
        mess_core.search(TABLE, **{argument: 0.5})
    with pytest.raises(TypeError, match=f"{argument}: expected a string, got float 0.5"):
        mess_core.evaluate(TABLE, Configuration((0,)), **{argument: 0.5})


@pytest.mark.parametrize(
    "configuration",
    [
        Configuration(()),
        Configuration((0, 99), (Gate(0, 0.5),)),
        Configuration((1, 0), (Gate(0, 0.5),)),
        Configuration((0, 6), ()),
        Configuration((0, 6), (Gate(9, 0.5),)),
        Configuration((0, 6), (Gate(0, float("nan")),)),
        Configuration((0, 6), (Gate(-1, 0.5),)),
        Configuration((-1,)),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(configuration):
    with pytest.raises(ValueError, match=r"exits: expected|gates: expected"):
        mess_core.evaluate(TABLE, configuration)
