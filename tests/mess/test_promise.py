"""Promises about unseen images: the words, the bounds, and that what is promised holds in simulation."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from benches.python.guarantee import as_calibration_table, judged
from benches.python.search_table import synthetic_table
from scipy.stats import binom
from typer.testing import CliRunner

import mess
import mess_core
from mess import Guarantee, cli
from mess.reporting.tables import guaranteed_text
from mess.searching import promise, risk
from mess.searching.promise import least_cost

DELTA = 0.1


def mean_of(rng, kind, n, mean):
    """n losses in 0..1 whose expectation is `mean`, calm or wild."""
    if kind == "all or nothing":
        return (rng.random(n) < mean).astype(float)
    if kind == "rare and large":
        return np.where(rng.random(n) < mean / 0.5, 0.5, 0.0)
    if kind == "constant":
        return np.full(n, mean)
    return rng.beta(2, 2 * (1 - mean) / mean, n)


KINDS = ("all or nothing", "rare and large", "constant", "calm")


def share_of_small_p_values(test_of, kind, repeats=2000, n=150, mean=0.05):
    rng = np.random.default_rng(0)
    return np.mean([test_of(mean_of(rng, kind, n, mean), mean) <= DELTA for _ in range(repeats)])


def sure(delta, repeats):
    """Above this, `delta` is not the probability: four standard errors."""
    return delta + 4 * np.sqrt(delta * (1 - delta) / repeats)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("test_of", [risk.betting_p_value, risk.hoeffding_bentkus_p_value])
def test_p_values_are_valid_at_the_limit_itself(test_of, kind):
    assert share_of_small_p_values(test_of, kind) <= sure(DELTA, 2000)


def test_the_check_catches_bounds_that_are_none():
    def hopeful(losses, limit):
        return float(losses.mean() >= limit)

    def normal(losses, limit):  # the central limit theorem, with what was seen as the variance
        return float(losses.mean() + 1.28 * losses.std() / np.sqrt(len(losses)) > limit)

    assert share_of_small_p_values(hopeful, "calm") > sure(DELTA, 2000)
    assert share_of_small_p_values(normal, "all or nothing", n=20) > sure(DELTA, 2000)


def test_bounds_by_hand():
    nothing = np.zeros(100)
    # Hoeffding for no loss at all is (1 - limit)^n; Bentkus is e times it
    assert risk.hoeffding_bentkus_p_value(nothing, 0.03) == pytest.approx(0.97**100)
    ones = np.repeat([1.0, 0.0], [2, 98])
    bentkus = np.e * binom.cdf(2, 100, 0.1)
    assert risk.hoeffding_bentkus_p_value(ones, 0.1) == pytest.approx(min(bentkus, np.exp(-100 * kl(0.02, 0.1))))
    # 20 stakes of one half, 80 of all that may be staked
    expected = 1 / ((1 + 0.5 * 0.03 / 0.97) ** 20 * (1 + 0.999 * 0.03 / 0.97) ** 80)
    assert risk.betting_p_value(nothing, 0.03) == pytest.approx(expected)
    assert risk.betting_p_value(np.full(50, 0.2), 0.1) == 1.0
    tests = {risk.hoeffding_bentkus_p_value: 1 - 0.05 ** (1 / 100), risk.betting_p_value: 0.03274}
    for p_value, least in tests.items():
        assert risk.least_limit(100, 0.95, p_value) == pytest.approx(least, abs=1e-4)
    for n, p_value, bounds in itertools.product((1, 20, 81, 1000), tests, ((0, 1), (-1, 1))):
        limit = risk.least_limit(n, 0.95, p_value, bounds=bounds)
        assert limit == bounds[1] or p_value(np.zeros(n), limit, bounds=bounds) <= 0.05
        assert p_value(np.zeros(n), limit - 1e-5, bounds=bounds) > 0.05
    # the same on -1..1 with the scale moved
    assert risk.betting_p_value(nothing - 1, -0.94, bounds=(-1, 1)) == pytest.approx(expected)
    assert risk.betting_p_value(nothing, 0.0) == 1.0
    assert risk.betting_p_value(nothing, 1.0) == 0.0


def kl(a, b):
    return a * np.log(a / b) + (1 - a) * np.log((1 - a) / (1 - b))


def test_calm_losses_need_fewer_images():
    rng = np.random.default_rng(0)
    calm = np.clip(rng.normal(0.02, 0.02, 400), 0, 1)
    assert risk.betting_p_value(calm, 0.04) < 0.01 < risk.hoeffding_bentkus_p_value(calm, 0.04)


@pytest.mark.parametrize("losses", [np.array([]), np.array([0.5, np.nan]), np.array([1.5]), np.array([[0.5]])])
def test_losses_that_are_none(losses):
    for test_of in (risk.betting_p_value, risk.hoeffding_bentkus_p_value):
        with pytest.raises(ValueError, match="losses: expected"):
            test_of(losses, 0.1)


def test_fixed_sequence_stops_at_the_first_failure():
    asked = []

    def p_values():
        for p in (0.01, 0.05, 0.2, 0.001):
            asked.append(p)
            yield p

    assert risk.fixed_sequence(p_values(), 0.1) == 2
    assert asked == [0.01, 0.05, 0.2]
    assert risk.fixed_sequence([np.nan], 0.1) == 0


def test_conformal_risk_control_by_hand():
    # sums 0, 1, 2, 3 of three images, and one more image that may lose everything: (sum + 1) / 4
    losses = np.array([[0, 0, 1, 1], [0, 1, 1, 1], [0, 0, 0, 1.0]])
    assert risk.conformal_risk_control(losses, 0.2) == 0
    assert risk.conformal_risk_control(losses, 0.25) == 1
    assert risk.conformal_risk_control(losses, 0.74) == 2
    assert risk.conformal_risk_control(losses, 1.0) == 4
    assert risk.conformal_risk_control(losses[:, ::-1], 0.74) == 0  # falling losses count as their largest so far


def test_words():
    assert Guarantee.parse("disagreement <= 0.02 with 95 %") == Guarantee(loss="disagreement", limit=0.02)
    assert Guarantee.parse("error increase<=1% with 90%") == Guarantee(
        loss="error increase", limit=0.01, confidence=0.9
    )
    miss = Guarantee.parse("miss rate of traffic light <= 0.1 with 99.5 %")
    assert (miss.of_class, miss.confidence) == ("traffic light", 0.995)
    assert Guarantee.parse("disagreement <= 0.02 on average").confidence is None
    for asked in (miss, Guarantee(loss="error increase", limit=0.25, confidence=None)):
        assert Guarantee.parse(str(asked)) == asked


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "guarantee: expected 'disagreement"),
        ("disagreement < 0.02 with 95 %", "guarantee: expected 'disagreement"),
        ("mIoU drop <= 0.01 with 95 %", "guarantee: expected 'disagreement"),
        ("disagreement <= 0.0.2 with 95 %", "guarantee: expected numbers"),
        ("disagreement <= 0 with 95 %", "limit: expected a share above 0"),
        ("disagreement <= 2 with 95 %", "limit: expected a share above 0"),
        ("disagreement <= 0.02 with 100 %", "confidence: expected 50 % or more"),
        ("disagreement <= 0.02 with 5 %", "confidence: expected 50 % or more"),
        ("miss rate of cat <= 0.1 on average", "guarantee: expected a confidence for a miss rate, got one on average"),
    ],
)
def test_other_words(text, message):
    with pytest.raises(ValueError, match=message):
        Guarantee.parse(text)


def test_losses_of_a_table(table):
    final = len(table.exits) - 1
    pixels = table.input_size[0] * table.input_size[1]
    differ = Guarantee(loss="disagreement", limit=0.1).losses(table)
    np.testing.assert_array_equal(differ * pixels, table.disagreement)
    increase = Guarantee(loss="error increase", limit=0.1).losses(table)
    e, i = 2, 7
    wrong = [1 - table.intersection[x, i].sum() / table.ground_truth[i].sum() for x in (e, final)]
    assert increase[e, i] == pytest.approx(wrong[0] - wrong[1])
    assert (increase[final] == 0).all()
    name = table.class_names[3]
    miss = Guarantee(loss="miss rate", limit=0.1, of_class=name).losses(table)
    has = table.ground_truth[:, 3] > 0
    assert np.isnan(miss[:, ~has]).all()
    np.testing.assert_allclose(miss[e, has], 1 - table.intersection[e, has, 3] / table.ground_truth[has, 3])


@pytest.fixture(scope="module")
def population():
    drawn = synthetic_table(images=4000, classes=6, points=4, heads=2, pixels=2, seed=3)
    return as_calibration_table(drawn, "population")


def broken_promises(population, promise, draws, *, learn=80, test=240):
    """Share of draws of calibration images whose choice loses more than promised; mean loss; number of abstentions."""
    losses = promise.losses(population)
    found = []
    for draw in range(draws):
        rng = np.random.default_rng(draw)
        images = rng.choice(len(population.images), learn + test, replace=False)
        result = mess.guarantee(
            population.select(images), promise, learn_share=learn / (learn + test), seed=draw, max_exits=2, threads=1
        )
        found.append((judged(population, losses, result.configuration)[1], result.configuration is None))
    losses_of = np.array([loss for loss, _ in found])
    return (losses_of > promise.limit).mean(), losses_of.mean(), sum(abstained for _, abstained in found)


@pytest.fixture
def quick(monkeypatch):
    """Without the bootstrap intervals, which choose nothing."""
    monkeypatch.setattr(risk, "bootstrap_interval", lambda *_, **__: (0.0, 0.0))


@pytest.mark.slow
def test_a_promise_holds(population, quick):
    """1,000 calibration sets: at most one in ten may break it. Too careful a method would abstain, which counts too."""
    promise = Guarantee(loss="error increase", limit=0.03, confidence=1 - DELTA)
    broken, _, abstained = broken_promises(population, promise, 1000)
    assert broken <= sure(DELTA, 1000)
    assert abstained < 20


@pytest.mark.slow
def test_a_broken_bound_breaks_promises(population, quick, monkeypatch):
    """The simulation above catches a bound that takes the mean for the truth, though images are held out for it."""
    monkeypatch.setattr(risk, "betting_p_value", lambda losses, limit, **_: float(losses.mean() > limit))
    promise = Guarantee(loss="error increase", limit=0.03, confidence=1 - DELTA)
    broken, _, _ = broken_promises(population, promise, 200)
    assert broken > sure(DELTA, 200)


@pytest.mark.slow
def test_a_promise_on_average_holds(population, quick):
    promise = Guarantee(loss="disagreement", limit=0.05, confidence=None)
    _, mean_loss, abstained = broken_promises(population, promise, 300)
    assert mean_loss <= promise.limit
    assert mean_loss > 0.7 * promise.limit  # it is not merely careful
    assert abstained == 0


def test_the_optimum_alone_promises_nothing(population):
    promise = Guarantee(loss="error increase", limit=0.03)
    losses = promise.losses(population)
    broken = 0
    for draw in range(30):
        images = np.random.default_rng(draw).choice(len(population.images), 320, replace=False)
        chosen = least_cost(population.select(images), promise, max_exits=2)
        broken += judged(population, losses, chosen)[1] > promise.limit
    assert broken > 0.2 * 30


def test_the_outcome(population):
    part = population.select(np.arange(600))
    result = mess.guarantee(part, "error increase <= 0.03 with 90 %", max_exits=2)
    again = mess.guarantee(part, "error increase <= 0.03 with 90 %", max_exits=2, threads=1)
    assert result == again
    assert (result.searched, result.held_out) == (120, 480)
    assert 0 < result.tested <= result.path
    best, (proof,) = result.configuration, result.proofs
    assert proof.p_value <= 0.1
    assert proof.images == 480
    assert best.promise["cost"] < result.baseline_cost
    assert best.promise["guarantees"][0]["guarantee"] == "error increase <= 0.03 with 90 %"
    low, high = result.accuracy_interval
    assert low < best.promise["accuracy"] < high
    assert result.drop_interval[0] <= result.baseline_accuracy - best.promise["accuracy"] <= result.drop_interval[1]
    # two promises are dearer than one, and each is kept
    both = mess.guarantee(
        part, ["error increase <= 0.03 with 90 %", "miss rate of class 0 <= 0.1 with 90 %"], max_exits=2
    )
    assert both.configuration is None or all(p.p_value <= 0.1 for p in both.proofs)
    assert len(both.proofs) == 2
    # held out by the user
    theirs = mess.guarantee(
        part, "error increase <= 0.03 with 90 %", held_out=population.select(np.arange(600, 1600)), max_exits=2
    )
    assert (theirs.searched, theirs.held_out) == (600, 1000)


def test_the_cheapest_of_what_is_proven_is_taken(population, monkeypatch):
    """Not the last one on the path: here that is the original network, which keeps every promise."""
    part = population.select(np.arange(600))
    options = {"held_out": population.select(np.arange(600, 1600)), "max_exits": 2}
    result = mess.guarantee(part, "error increase <= 0.03 with 90 %", **options)
    path, is_complete = promise._front(part, [Guarantee.parse("error increase <= 0.03 with 90 %")], _OPTIONS)
    assert is_complete
    cheaper = path[result.tested - 1]
    final = mess_core.Configuration((part.exits.index("final"),))
    monkeypatch.setattr(promise, "_front", lambda *_: ([cheaper, final], True))
    again = mess.guarantee(part, "error increase <= 0.03 with 90 %", **options)
    assert again.tested == 2
    assert again.configuration.promise["cost"] < again.baseline_cost
    assert again.configuration.exits[0].exit == part.exits[cheaper.exits[0]]


_OPTIONS = {"cost": "macs", "max_exits": 2, "time_limit": 10.0}


def test_too_few_images_abstain_and_say_why(population):
    result = mess.guarantee(population.select(np.arange(40)), "disagreement <= 0.02 with 95 %", max_exits=2)
    assert result.configuration is None
    assert result.proofs[0].least_provable > 0.02
    text = guaranteed_text(result)
    assert "nothing cheaper than the original network can be promised" in text
    assert "32 images cannot prove less than 0.126" in text


def test_a_path_that_was_cut_short_is_no_abstention(population):
    part = population.select(np.arange(600))
    options = {"held_out": population.select(np.arange(600, 1600)), "max_exits": 2, "time_limit": 0.0}
    result = mess.guarantee(part, "disagreement <= 0.006 with 99 %", **options)
    assert (result.configuration, result.is_complete) == (None, False)
    assert "can be promised with these images, as far as the search for configurations got" in guaranteed_text(result)


@pytest.mark.parametrize("text", ["disagreement <= 0.12345649 with 99.99999 %", "error increase <= 0.007 with 90 %"])
def test_a_promise_is_told_as_it_is(text):
    """Rounded it would promise more than was proven."""
    assert str(Guarantee.parse(text)) == text
    assert Guarantee.parse("disagreement <= 0.7 % with 95 %").limit == 0.007
    assert Guarantee.parse(str(Guarantee(loss="disagreement", limit=1e-5))).limit == 1e-5


def test_images_that_were_searched_prove_nothing(population):
    """By other names, in another split, with confidences of another device."""
    searched = population.select(np.arange(200))
    mixed = population.select(np.arange(199, 400))
    other = replace(
        mixed,
        images=tuple(f"other-{i}" for i in range(201)),
        image_confidence=np.clip(mixed.image_confidence + 1e-3, 0, 1),
        facts={**mixed.facts, "split": "trainval"},
    )
    promised = "disagreement <= 0.3 with 90 %"
    with pytest.raises(ValueError, match=r"got 1 that are in both: \['other-0'\]"):
        mess.guarantee(searched, promised, held_out=other, max_exits=2)
    mess.guarantee(searched, promised, held_out=other.select(np.arange(1, 201)), max_exits=2)
    trained = replace(other.select(np.arange(1, 201)), facts={"split": "train"})
    with pytest.raises(ValueError, match="held_out: expected images that nothing was chosen by, got the train split"):
        mess.guarantee(searched, promised, held_out=trained, max_exits=2)


def test_bad_questions(population):
    part = population.select(np.arange(100))
    for promises, options, message in [
        ([], {}, "promises: expected at least one"),
        ("miss rate of cat <= 0.1 with 95 %", {}, "guarantee: expected one of the classes"),
        (["disagreement <= 0.1 on average", "error increase <= 0.1 with 95 %"], {}, "promises: expected one alone"),
        ("disagreement <= 0.1 with 95 %", {"learn_share": 0.0}, "learn_share: expected above 0"),
        ("disagreement <= 0.1 with 95 %", {"learn_share": 0.001}, "table: expected images enough"),
        ("disagreement <= 0.1 with 95 %", {"bound": "clt"}, "bound: expected one of"),
        ("disagreement <= 0.1 with 95 %", {"held_out": part}, "held_out: expected other images"),
        ("disagreement <= 0.1 with 95 %", {"forbidden_exits": ["x"]}, "table: exits: expected 'x'"),
    ]:
        with pytest.raises(ValueError, match=message):
            mess.guarantee(part, promises, max_exits=2, **options)


def test_the_command(run_folder):
    runner = CliRunner()
    arguments = ["search", str(run_folder), "--guarantee", "disagreement <= 0.4 with 90 %", "--max-exits", "2"]
    told = runner.invoke(cli.app, [*arguments, "--json"])
    assert told.exit_code == 0, told.output
    found = json.loads(told.output[told.output.index("{") :])
    path = run_folder / "configurations" / "guaranteed-max-exits-2.json"
    assert mess.Configuration.load(path).to_json() == found["configuration"]
    assert found["proofs"][0]["p_value"] <= 0.1
    text = runner.invoke(cli.app, arguments).output
    assert "promised: disagreement <= 0.4 with 90 %" in text
    assert "bootstrap interval" in text
    impossible = "disagreement <= 0.0001 with 99 %"
    hopeless = runner.invoke(cli.app, ["search", str(run_folder), "--guarantee", impossible, "--max-exits", "2"])
    assert hopeless.exit_code == 1
    assert "cannot prove less than" in hopeless.output
    granted = mess.Configuration.load(path)  # another promise stays
    same = replace(granted, promise=granted.promise | {"guarantees": [{"guarantee": impossible}]})
    same.save(path)
    runner.invoke(cli.app, ["search", str(run_folder), "--guarantee", impossible, "--max-exits", "2"])
    assert not path.exists()
    for more, message in [
        (["--accuracy-drop", "1"], "--guarantee: expected no other target"),
        (["--min-share", "0.1"], "--guarantee: expected the input-dependent setting"),
    ]:
        refused = runner.invoke(cli.app, [*arguments, *more])
        assert refused.exit_code != 0
        assert message in str(refused.exception) + refused.output
