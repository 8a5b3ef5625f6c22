"""What is told beside a search: the plain network of the same cost. And that a search needs no torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from benches.python.guarantee import as_calibration_table
from benches.python.search_table import synthetic_table

from mess import Configuration
from mess.deployment.configuration import ChosenExit
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
