"""The search: brute force on small tables, the definition, laws, interruption."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mess_core
from mess_core import Configuration, Gate, SearchTable
from tests.oracles import search as oracle

TOLERANCE = 1e-12


def random_table(
    seed: int, *, points=3, heads=2, images=6, classes=3, pixels=2, levels=4, round_costs=True
) -> SearchTable:
    """A table with ties in everything, so that tie-breaks and boundaries are met; or with costs that do not add up."""
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
)


def all_values(table: SearchTable, max_exits: int) -> np.ndarray:
    """(cost, accuracy) of every configuration, by brute force."""
    return np.array([oracle.evaluate(table, c)[:2] for c in oracle.configurations(table, max_exits)])


@given(tables, st.integers(1, 3), st.floats(0, 1))
def test_least_cost_equals_brute_force(table, max_exits, quantile):
    values = all_values(table, max_exits)
    target = float(np.quantile(values[:, 1], quantile, method="nearest"))
    outcome = mess_core.search(table, min_accuracy=target - TOLERANCE, max_exits=max_exits, image_thresholds=None)
    best = values[values[:, 1] >= target - TOLERANCE, 0].min()
    assert outcome.status == "optimal"
    assert outcome.best.cost == pytest.approx(best, rel=TOLERANCE)


@given(tables, st.integers(1, 3), st.floats(0, 1))
def test_greatest_accuracy_equals_brute_force(table, max_exits, quantile):
    values = all_values(table, max_exits)
    limit = float(np.quantile(values[:, 0], quantile, method="nearest"))
    limit *= 1 + TOLERANCE
    outcome = mess_core.search(table, max_cost=limit, max_exits=max_exits, image_thresholds=None)
    best = values[values[:, 0] <= limit, 1].max()
    assert outcome.best.accuracy == pytest.approx(best, abs=TOLERANCE)


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
    for found in outcome.found:
        assert mess_core.evaluate(table, found.configuration).found == found


def test_progress_is_reported():
    calls: list[tuple[int, int]] = []
    mess_core.search(random_table(2), progress=lambda done, total: calls.append((done, total)))
    assert calls[-1][0] == calls[-1][1] > 0


def test_an_error_in_the_progress_function_stops_the_search():
    table = random_table(1, points=5, heads=8, images=60, pixels=8, levels=1000)

    def fail(done, total):
        raise RuntimeError("shown to the user")

    with pytest.raises(RuntimeError, match="shown to the user"):
        mess_core.search(table, max_exits=5, image_thresholds=None, progress=fail)


def test_ctrl_c_interrupts():
    code = (
        "from tests.core.test_search import random_table; import mess_core;"
        "table = random_table(1, points=5, heads=8, images=60, pixels=8, levels=1000);"
        "print('ready', flush=True); mess_core.search(table, max_exits=6, image_thresholds=None)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors


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
    ({"head_cost": -TABLE.head_cost - 1}, ValueError, r"head_cost: expected finite costs >= 0"),
    ({"backbone_cost": TABLE.backbone_cost[::-1].copy()}, ValueError, r"backbone_cost: expected costs that grow"),
    ({"points": TABLE.points[:-1]}, ValueError, r"points: expected shape \[7\], got \[6\]"),
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
        ({"image_thresholds": 0}, "image_thresholds: expected at least 1, got 0"),
        ({"min_accuracy": float("nan")}, "min_accuracy: expected a number, got NaN"),
        ({"time_limit": -1.0}, "time_limit: expected seconds >= 0"),
        ({"setting": "anytime", "horizon": 0.0}, "horizon: expected a finite cost above 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        mess_core.search(TABLE, **options)


@pytest.mark.parametrize(
    "configuration",
    [
        Configuration(()),
        Configuration((0, 99), (Gate(0, 0.5),)),
        Configuration((1, 0), (Gate(0, 0.5),)),
        Configuration((0, 6), ()),
        Configuration((0, 6), (Gate(9, 0.5),)),
        Configuration((0, 6), (Gate(0, float("nan")),)),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(configuration):
    with pytest.raises(ValueError, match=r"exits: expected|gates: expected"):
        mess_core.evaluate(TABLE, configuration)
