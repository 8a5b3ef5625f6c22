"""From a trained network to a table that the search runs on. Reading order: `table` -> `counts` (of a batch) ->
`partial` (what is done) -> `collect` -> `latency`; `cluster` spreads it over machines."""

from mess.calibration.cluster import on_ray
from mess.calibration.collect import PIXEL_THRESHOLDS, calibrate
from mess.calibration.table import CalibrationTable

__all__ = ["PIXEL_THRESHOLDS", "CalibrationTable", "calibrate", "on_ray"]
