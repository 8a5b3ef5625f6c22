"""From a trained network to a table that the search runs on. Reading order: `table` -> `collect` -> `latency`."""

from mess.calibration.collect import PIXEL_THRESHOLDS, calibrate
from mess.calibration.table import FINAL_EXIT, CalibrationTable

__all__ = ["FINAL_EXIT", "PIXEL_THRESHOLDS", "CalibrationTable", "calibrate"]
