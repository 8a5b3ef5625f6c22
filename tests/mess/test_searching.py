"""What is told beside a search: the plain network of the same cost."""

from __future__ import annotations

from mess import Configuration
from mess.deployment import ChosenExit
from mess.reporting.tables import smaller_text
from mess.searching import smaller_network


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
    assert smaller_text(0.5, cut(0.5), 100.0).endswith("the same")
    assert "There is none" in smaller_text(0.5, None, 100.0)
