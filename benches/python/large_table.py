"""The largest calibration table that this machine holds: written, mapped, searched, and what memory that takes.

python benches/python/large_table.py --images 50000 --heads 64 --record
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mess
from mess.calibration.table import CalibrationTable

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from benches.machine import facts  # noqa: E402
from benches.python.guarantee import as_calibration_table  # noqa: E402
from benches.python.search_table import synthetic_table  # noqa: E402

CLASSES, POINTS, PIXELS = 21, 6, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--heads", type=int, default=64)
    parser.add_argument("--max-exits", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where the table is written")
    parser.add_argument("--search", type=Path, help="(used by itself) search this table, print JSON")
    parser.add_argument("--record", action="store_true", help="write benches/record/large_table.md")
    arguments = parser.parse_args()
    if arguments.search is not None:
        print(json.dumps(searched(arguments.search, arguments.max_exits)))
        return
    path = arguments.folder / "large-table.safetensors"
    command = [sys.executable, __file__, "--search", str(path), "--max-exits", str(arguments.max_exits)]
    try:
        begin = time.perf_counter()
        as_calibration_table(synthetic_table(images=arguments.images, heads=arguments.heads), "val").save(path)
        written = time.perf_counter() - begin
        size = path.stat().st_size
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    finally:
        path.unlink(missing_ok=True)
    found = json.loads(told)
    exits, padded = found["exits"], -(-CLASSES // 8) * 8
    counts, orders = 16 * exits * arguments.images * padded, 22 * exits * PIXELS * arguments.images
    out = [
        "# A large table",
        "",
        "```text",
        f"python benches/python/large_table.py {' '.join(sys.argv[1:])}",
        "```",
        "",
        *(f"- {key}: {value}" for key, value in facts("numpy", "safetensors").items()),
        f"- {arguments.images} images, {CLASSES} classes, {found['exits']} exits ({POINTS - 1} points x "
        f"{arguments.heads} heads, and the final one), {PIXELS} pixel thresholds; at most {arguments.max_exits} exits, "
        "all image thresholds",
        "",
        "| | |",
        "|---|---|",
        f"| file | {size / 1e9:.2f} GB (made and written in {written:.0f} s) |",
        f"| mapped and validated | {found['load']:.2f} s |",
        f"| engine's own form, at most, by compact.rs | {counts / 1e9:.2f} + {orders / 1e9:.2f} GB |",
        f"| memory of the process beside the mapped file, at most | {found['anonymous'] / 1e9:.2f} GB |",
        f"| least cost at 60 % | {found['status']}, {found['seconds']:.1f} s, {found['space']:.2g} configurations |",
    ]
    print("\n".join(out))
    if arguments.record:
        (ROOT / "benches" / "record" / "large_table.md").write_text("\n".join(out) + "\n")


def searched(path: Path, max_exits: int) -> dict[str, object]:
    """Map the table and search it; seconds and bytes."""
    begin = time.perf_counter()
    table = CalibrationTable.load(path)
    load = time.perf_counter() - begin
    most = 0

    def look(_: object) -> None:
        nonlocal most
        status = Path("/proc/self/status").read_text()
        anonymous = next(line for line in status.splitlines() if line.startswith("RssAnon"))
        most = max(most, 1024 * int(anonymous.split()[1]))

    begin = time.perf_counter()
    result = mess.search(table, min_accuracy=0.6, max_exits=max_exits, progress=look)
    return {
        "exits": len(table.exits),
        "load": load,
        "seconds": time.perf_counter() - begin,
        "status": result.status,
        "space": result.outcome.space,
        "anonymous": most,
    }


if __name__ == "__main__":
    main()
