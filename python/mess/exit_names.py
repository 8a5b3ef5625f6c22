"""Names of exits, as tables, configurations and reports have them."""

from __future__ import annotations

FINAL_EXIT = "final"
"""Name of the original model's own exit, beside `mess.model.network.ExitId.name` of the early ones."""
