"""From a configuration to a network that runs it. Knows nothing of training, calibration or search."""

from mess.deployment.configuration import ChosenExit, Configuration, describe
from mess.deployment.network import DeployedNetwork, Prediction, StaticNetwork, deploy
from mess.deployment.run import RunResult, run

__all__ = [
    "ChosenExit",
    "Configuration",
    "DeployedNetwork",
    "Prediction",
    "RunResult",
    "StaticNetwork",
    "deploy",
    "describe",
    "run",
]
