"""From a trained network to a table that the search runs on. Reading order: `table` -> `collect` -> `latency`."""

from mess.calibration.collect import PIXEL_THRESHOLDS, calibrate
from mess.calibration.table import CalibrationTable

__all__ = ["PIXEL_THRESHOLDS", "CalibrationTable", "calibrate"]
