"""From a configuration to a network that runs it. Knows nothing of training, calibration or search.

Reading order: `configuration` (a file; needs no torch, so nothing is imported here) -> `network` -> `run` (one
picture), `measure` (the clock), `export` (a folder for `mess.runtime`), `pretrained` and `card` (a folder to share).
"""
