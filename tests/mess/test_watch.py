"""Drift: the false alarm rate holds, shifts are found soon, and fall-back goes to the final exit."""

from __future__ import annotations

import logging
import math
from types import SimpleNamespace

import numpy as np
import pytest

import mess
from mess.runtime import Result, Watch
from mess.runtime.watch import BINS, PROMISE, histogram
from tests.mess.test_deployment import dividing

THRESHOLD = 0.9


class Camera:
    """A runtime whose images are their own image confidence at its only gate."""

    def __init__(self, calibration, deadline_ms=None, **promise):
        self.deadline_ms = deadline_ms
        gate = SimpleNamespace(name="0:head", image_threshold=THRESHOLD)
        shares = [float((calibration >= THRESHOLD).mean()), float((calibration < THRESHOLD).mean())]
        known = {PROMISE: histogram(calibration).tolist(), "shares": shares} | promise
        exits = (gate, SimpleNamespace(name="final", image_threshold=None))
        self.manifest = SimpleNamespace(setting="input-dependent", exits=exits, promise=known)

    def predict(self, image, image_thresholds=None):
        threshold = THRESHOLD if image_thresholds is None else image_thresholds[0]
        asked = () if threshold == math.inf else (float(image),)
        return Result(np.zeros((1, 1)), "0:head" if image >= threshold else "final", asked, (0.0,))


def like_calibration(rng, n):
    return np.clip(rng.beta(12, 2, n), 0, 1)


def alarms(streams, draw, *, calibration=100, length=300, false_alarm=0.05, watch_of=Watch):
    """Share of the streams with an alarm, and the median image that gave it."""
    found = []
    for seed in range(streams):
        rng = np.random.default_rng(seed)
        watch = watch_of(Camera(like_calibration(rng, calibration)), false_alarm=false_alarm, seed=seed)
        for image in draw(rng, length):
            watch.predict(image)
        found.append(watch.report().alarmed_at)
    at = [image for image in found if image is not None]
    return len(at) / streams, float(np.median(at)) if at else None


def most(rate, streams):
    return rate + 4 * math.sqrt(rate * (1 - rate) / streams)


@pytest.mark.slow
def test_the_false_alarm_rate_holds():
    share, _ = alarms(600, like_calibration)
    assert share <= most(0.05, 600)


@pytest.mark.slow
def test_ranks_against_calibration_alone_would_not_hold():
    """The check above sees it when the ranks are not independent: a bag that never grows."""

    class Careless(Watch):
        def update(self, result):
            super().update(result)
            self._bag = self._calibration.copy()

    share, _ = alarms(200, like_calibration, calibration=20, length=1000, watch_of=Careless)
    assert share > most(0.05, 200)


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_shift_is_found_soon(sign):
    def shifted(rng, n):
        return np.clip(like_calibration(rng, n) + sign * 0.1, 0, 1)

    share, at = alarms(40, shifted)
    assert share > 0.95
    assert at < 60


def test_a_change_in_the_middle_is_found():
    def changing(rng, n):
        calm = like_calibration(rng, n)
        return np.concatenate([calm[: n // 2], calm[n // 2 :] - 0.15])

    share, at = alarms(40, changing, false_alarm=0.01)
    assert share > 0.9
    assert 150 < at < 220


def test_what_a_watch_says_and_does(caplog):
    rng = np.random.default_rng(0)
    camera = Camera(like_calibration(rng, 200))
    watch = Watch(camera, fall_back=True)
    calm = like_calibration(rng, 100)
    exits = [watch.predict(image).exit for image in calm]
    report = watch.report()
    assert not watch.drifted
    assert report.images == 100
    assert report.shares[0] == pytest.approx(exits.count("0:head") / 100)
    assert report.psi_confidence < 0.25
    assert report.psi_exits < 0.1
    with caplog.at_level(logging.WARNING, logger="mess"):
        for _ in range(60):
            watch.predict(0.5)
    assert watch.drifted
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "images have left what was calibrated on" in caplog.text
    report = watch.report()
    assert 100 < report.alarmed_at < 130
    assert report.images == report.alarmed_at  # in fall-back nothing is watched
    assert report.most_wealth >= 100
    assert report.psi_confidence > 0.1
    assert watch.predict(0.99).exit == "final"
    watch.reset()
    assert watch.predict(0.99).exit == "0:head"
    assert watch.report().images == 1


def test_every_so_many():
    watch = Watch(Camera(like_calibration(np.random.default_rng(0), 50)), every=10)
    for _ in range(95):
        watch.predict(0.2)
    assert watch.report().images == 95
    assert watch._bag.sum() == 50 + 10


def test_it_can_go_on_for_ever():
    watch = Watch(Camera(np.full(10, 0.5)))
    for _ in range(3000):
        watch.predict(1.0)
    assert np.isfinite(watch.report().most_wealth)
    assert watch.report().alarmed_at < 100


def test_histogram():
    counts = histogram(np.array([0.0, 0.005, 0.01, 0.999, 1.0]))
    assert (counts.sum(), counts[0], counts[1], counts[-1], len(counts)) == (5, 2, 1, 2, BINS)


@pytest.mark.parametrize(
    ("promise", "options", "message"),
    [
        ({PROMISE: None}, {}, "manifest: promise.first_gate_histogram: expected 100 counts"),
        ({PROMISE: [1] * 99}, {}, "expected 100 counts"),
        ({PROMISE: [0] * 100}, {}, "expected 100 counts"),
        ({PROMISE: [-1] * 100}, {}, "expected 100 counts"),
        ({PROMISE: "x" * 100}, {}, "expected 100 counts"),
        ({"shares": [1.0]}, {}, "shares: expected one in 0..1 for each of 2 exits"),
        ({"shares": [1, {}]}, {}, "shares: expected a list of shares of images, got '{}'"),  # found by fuzzing
        ({"shares": [0.5, float("nan")]}, {}, "shares: expected one in 0..1"),
        ({}, {"false_alarm": 0.0}, "false_alarm: expected a probability"),
        ({}, {"false_alarm": math.nan}, "false_alarm: expected a probability"),
        ({}, {"every": 0}, "every: expected at least 1"),
        ({"deadline_ms": 20.0}, {"fall_back": True}, "fall_back: expected a runtime without a deadline, .* of 20 ms"),
    ],
)
def test_bad_watches(promise, options, message):
    with pytest.raises(ValueError, match=message):
        Watch(Camera(np.full(5, 0.9), **promise), **options)


def test_a_first_gate_that_is_never_asked_is_refused():
    camera = Camera(np.full(5, 0.9))
    camera.manifest.exits[0].image_threshold = 1.5
    with pytest.raises(ValueError, match="runtime: expected a first gate that lets images leave, got .* of 1.5"):
        Watch(camera)


def test_a_result_that_was_not_asked_is_refused():
    watch = Watch(Camera(np.full(5, 0.9)))
    last = watch.runtime.manifest.exits[-1].name
    gates = len(watch.runtime.manifest.exits) - 1
    with pytest.raises(ValueError, match="result: expected the image confidence of each gate"):
        watch.update(Result(np.zeros((1, 1)), last, (), (0.0,)))
    watch.update(Result(np.zeros((1, 1)), last, (0.5,) * gates, (0.0,)))
    first, *rest = watch.runtime.manifest.exits
    watch.runtime.manifest.exits = (first, SimpleNamespace(name="between", image_threshold=0.9), *rest)
    with pytest.raises(ValueError, match=f"{gates + 1} in all, got {gates}; a `Stream` that skips gates"):
        watch.update(Result(np.zeros((1, 1)), last, (0.5,) * gates, (0.0,)))


def test_a_search_leaves_what_a_watch_needs(network, table, tmp_path):
    """From the search to an exported folder: calibration's own histogram, and no alarm on calibration images."""
    found = mess.search(table, max_drop=0.05, required_exits=[dividing(table).exits[0].exit, "final"])
    best = found.best
    gate = best.exits[0]
    confidence = table.image_confidence[
        table.exits.index(gate.exit), table.pixel_thresholds.index(gate.pixel_threshold)
    ]
    assert best.promise[PROMISE] == histogram(confidence).tolist()
    mess.export(mess.deploy(network, best), tmp_path / "net", class_names=table.class_names)
    watch = Watch(mess.Runtime(tmp_path / "net"))
    picture = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    assert watch.predict(picture).exit in {e.exit for e in best.exits}
    assert watch.report().images == 1
