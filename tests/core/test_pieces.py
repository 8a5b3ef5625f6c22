"""A search in pieces equals the search in one, whoever does which piece and in whatever order."""

from __future__ import annotations

import math
import pickle
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mess_core
from mess_core import SearchJournal, SearchPieces
from tests.core.test_search import random_table, tables

TARGETS = ({"min_accuracy": 0.3}, {"max_cost": 12.0}, {}, {"resolution": 0.5}, {"min_accuracy": 0.99})
LUCK = {"explored": 0, "evaluated": 0}


def problem_of(table, **options):
    """The problem that a search hands over."""
    given = []

    def keep(problem):
        given.append(problem)
        return SearchPieces(problem).outcome(math.inf)

    mess_core.search(table, **options, spread=keep)
    return given[0]


def by_several(table, workers=3, seed=0, **options):
    """Done by several, who take tasks in chunks at random, and tell each other what they found now and then."""
    draw = random.Random(seed)

    def spread(problem):
        several = [SearchPieces(pickle.loads(pickle.dumps(problem))) for _ in range(workers)]
        gaps, known = several[0].gaps(), {}
        assert all((w.gaps(), w.tasks()) == (gaps, several[0].tasks()) for w in several)
        for gap in gaps:
            left = list(several[0].tasks())
            draw.shuffle(left)
            while left:
                chunk = [left.pop() for _ in range(min(len(left), draw.randint(1, 5)))]
                piece = draw.choice(several).run(gap, chunk, list(known) if draw.random() < 0.5 else [])
                assert set(piece.finished) == set(chunk)
                known.update(dict.fromkeys(found.configuration for found in piece.found))
        outcome = draw.choice(several).outcome(gaps[-1] if gaps else math.inf, list(known))
        if outcome.status == "infeasible" and problem.nearest is not None:
            nearest = mess_core.search(table, **{**options, **opposite(options)}).found[-1:]
            outcome = replace(outcome, nearest=nearest[0] if nearest else None)
        return outcome

    return mess_core.search(table, **options, spread=spread)


def opposite(options):
    if "min_accuracy" in options:
        return {"min_accuracy": None, "max_cost": math.inf}
    return {"min_accuracy": -math.inf, "max_cost": None}


def equal(one, several):
    assert replace(one, **LUCK) == replace(several, **LUCK)


@given(tables, st.sampled_from(TARGETS), st.integers(1, 4), st.integers(0, 10**6))
def test_pieces_together_are_the_whole(table, target, max_exits, seed):
    options = {**target, "max_exits": max_exits}
    equal(mess_core.search(table, **options), by_several(table, seed=seed, **options))


@pytest.mark.parametrize("target", TARGETS[:3])
@pytest.mark.parametrize("seed", range(3))
def test_with_many_images_and_limits(target, seed):
    table = random_table(seed, points=4, heads=3, images=90, pixels=2, levels=40)
    options = {**target, "max_exits": 4, "min_share": 0.02, "required_exits": [2], "image_thresholds": 9}
    equal(mess_core.search(table, **options), by_several(table, seed=seed, **options))


@pytest.mark.parametrize("setting", ["budgeted", "anytime"])
@pytest.mark.parametrize("target", [{"max_cost": 12.0}, {}])
def test_settings_that_are_not_cut_up(setting, target):
    table = random_table(1)
    problem = problem_of(table, setting=setting, **target)
    assert SearchPieces(problem).gaps() == ()
    equal(mess_core.search(table, setting=setting, **target), by_several(table, setting=setting, **target))


def test_one_that_waited_for_nobody_is_only_certified_as_far_as_it_got():
    table = random_table(5, points=4, heads=2, images=30, levels=40)
    pieces = SearchPieces(problem_of(table, max_exits=3))
    outcome = pieces.outcome(math.inf)
    assert outcome.status == "stopped"
    assert outcome.gap == 1.0
    done = pieces.run(0.0, pieces.tasks()[:3])
    assert len(done.finished) == 3
    assert done.found
    assert pieces.outcome(0.0).status == "optimal"  # who says so must know that all were done


@pytest.mark.parametrize("gap", [math.nan, -0.5])
def test_gaps_that_are_none(gap):
    """NaN would have excluded everything, and less than 0 certified more than the optimum."""
    pieces = SearchPieces(problem_of(random_table(5), min_accuracy=0.2))
    with pytest.raises(ValueError, match="gap: expected 0 or more, got"):
        pieces.run(gap, pieces.tasks())
    with pytest.raises(ValueError, match="gap: expected 0 or more, got"):
        pieces.outcome(gap)


def test_out_of_time():
    table = random_table(5, points=4, heads=3, images=60, levels=40)
    problem = problem_of(table, max_exits=4)
    assert SearchPieces(problem).run(0.0, SearchPieces(problem).tasks(), time_limit=0.0).finished == ()
    cut_short = SearchPieces(replace(problem, time_limit=0.0))
    assert cut_short.outcome(math.inf).status == "stopped"
    assert (cut_short.gaps(), cut_short.tasks()) == ((), ())
    assert cut_short.run(0.0, SearchPieces(problem).tasks()).finished == ()  # what one that was not cut short deals out


def test_the_journal_is_that_of_one_process(tmp_path):
    """What several did can be gone on with alone, and the other way round."""
    table = random_table(3, points=4, heads=2, images=40, levels=20)
    options = {"min_accuracy": 0.25, "max_exits": 4}
    whole = mess_core.search(table, **options)
    problem = problem_of(table, **options)
    pieces, path = SearchPieces(problem), tmp_path / "journal"
    journal = SearchJournal(path, problem)
    half = pieces.tasks()[::2]
    piece = pieces.run(0.0, half)
    journal.finish(0.0, piece.finished, [found.configuration for found in piece.found])
    again = SearchJournal(path, problem)
    assert all(again.is_done(0.0, task) == (task in half) for task in pieces.tasks())
    assert set(again.known) == {found.configuration for found in piece.found}
    alone = mess_core.search(table, **options, journal=path)
    equal(whole, alone)
    assert alone.evaluated < whole.evaluated or alone.explored < whole.explored
    complete = SearchJournal(path, problem)
    assert all(complete.is_done(0.0, task) for task in pieces.tasks())
    assert whole.best.configuration in complete.known


def test_what_is_refused(tmp_path):
    table = random_table(0)
    problem = problem_of(table, min_accuracy=0.3)
    pieces = SearchPieces(problem)
    with pytest.raises(ValueError, match="tasks: expected names of tasks of this search, got 'other'"):
        pieces.run(0.0, ["other"])
    with pytest.raises(ValueError, match="part: expected none beside spread"):
        mess_core.search(table, part=(0, 2), spread=lambda problem: None)
    unfit = mess_core.Configuration((99,))
    with pytest.raises(ValueError, match="expected"):
        pieces.run(0.0, [], [unfit])
    with pytest.raises(ValueError, match="expected"):
        pieces.outcome(0.0, [unfit])
    (tmp_path / "journal").write_text("something else\n")
    with pytest.raises(ValueError, match="journal: expected one of this table and search"):
        SearchJournal(tmp_path / "journal", problem)
    with pytest.raises(ValueError, match="journal: expected a file that can be written"):
        SearchJournal("/dev/full", problem)
    broken = replace(table, points=np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="points"):
        SearchPieces(replace(problem, table=broken))
    with pytest.raises(ValueError, match="points"):
        SearchJournal(tmp_path / "new", replace(problem, table=broken))


def test_a_full_disk_is_told_at_once(tmp_path):
    problem = problem_of(random_table(0), min_accuracy=0.3)
    pieces, path = SearchPieces(problem), tmp_path / "journal"
    journal = SearchJournal(path, problem)
    resource = pytest.importorskip("resource")  # not on Windows
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, before[1]))
    try:
        with pytest.raises(ValueError, match="journal: expected a file that can be written"):
            journal.finish(0.0, pieces.tasks(), [])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_the_search_for_what_comes_nearest():
    table = random_table(2)
    for target in ({"min_accuracy": 2.0}, {"max_cost": 1e-9}):
        outcome = mess_core.search(table, **target)
        assert outcome.status == "infeasible"
        nearest = problem_of(table, **target).nearest
        pieces = SearchPieces(nearest)
        known = [f.configuration for gap in pieces.gaps() for f in pieces.run(gap, pieces.tasks()).found]
        assert pieces.outcome(0.0, known).best == outcome.nearest
    assert problem_of(table).nearest is None
