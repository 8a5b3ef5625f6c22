"""Multi-exit semantic segmentation: make your segmentation model cheaper at an accuracy you choose.

    network = mess.convert(model, example)             exit points, candidate heads
    mess.train(network, batches, out="run")            stage 1 and 2
    table   = mess.calibrate(network, val_batches)     one pass over a labelled split
    result  = mess.search(table, max_drop=0.01)        exact, no network
    fast    = mess.deploy(network, result.best)        easy images really stop early
    mess.export(fast, "net", class_names=[...])        a folder that `mess.Runtime("net")` runs without torch

`import mess` loads nothing heavy; torch is imported with the first name that needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mess.calibration.collect import calibrate
    from mess.calibration.table import CalibrationTable
    from mess.deployment.configuration import ChosenExit, Configuration
    from mess.deployment.export import export
    from mess.deployment.network import DeployedNetwork, Prediction, deploy
    from mess.deployment.pretrained import from_pretrained, save_pretrained
    from mess.deployment.run import run
    from mess.model.cost import profile
    from mess.model.exits import HeadSpec, head_grid
    from mess.model.network import MultiExitNetwork, convert
    from mess.policy import PolicySettings
    from mess.runtime.network import Runtime
    from mess.searching.promise import Guarantee, Guaranteed, guarantee
    from mess.searching.solve import SearchInterrupted, SearchResult, evaluate, search
    from mess.training import losses
    from mess.training.loop import pretrain, train, train_exits
    from mess.training.settings import TrainSettings
    from mess.verbs import demo, load_run
    from mess_core import __version__

_HOMES = {
    "__version__": "mess_core",
    "CalibrationTable": "mess.calibration.table",
    "ChosenExit": "mess.deployment.configuration",
    "Configuration": "mess.deployment.configuration",
    "DeployedNetwork": "mess.deployment.network",
    "Guarantee": "mess.searching.promise",
    "Guaranteed": "mess.searching.promise",
    "HeadSpec": "mess.model.exits",
    "MultiExitNetwork": "mess.model.network",
    "PolicySettings": "mess.policy",
    "Prediction": "mess.deployment.network",
    "Runtime": "mess.runtime.network",
    "SearchInterrupted": "mess.searching.solve",
    "SearchResult": "mess.searching.solve",
    "TrainSettings": "mess.training.settings",
    "calibrate": "mess.calibration.collect",
    "convert": "mess.model.network",
    "demo": "mess.verbs",
    "deploy": "mess.deployment.network",
    "evaluate": "mess.searching.solve",
    "export": "mess.deployment.export",
    "from_pretrained": "mess.deployment.pretrained",
    "guarantee": "mess.searching.promise",
    "head_grid": "mess.model.exits",
    "load_run": "mess.verbs",
    "losses": "mess.training.losses",
    "pretrain": "mess.training.loop",
    "profile": "mess.model.cost",
    "run": "mess.deployment.run",
    "save_pretrained": "mess.deployment.pretrained",
    "search": "mess.searching.solve",
    "train": "mess.training.loop",
    "train_exits": "mess.training.loop",
}

__all__ = [
    "CalibrationTable",
    "ChosenExit",
    "Configuration",
    "DeployedNetwork",
    "Guarantee",
    "Guaranteed",
    "HeadSpec",
    "MultiExitNetwork",
    "PolicySettings",
    "Prediction",
    "Runtime",
    "SearchInterrupted",
    "SearchResult",
    "TrainSettings",
    "__version__",
    "calibrate",
    "convert",
    "demo",
    "deploy",
    "evaluate",
    "export",
    "from_pretrained",
    "guarantee",
    "head_grid",
    "load_run",
    "losses",
    "pretrain",
    "profile",
    "run",
    "save_pretrained",
    "search",
    "train",
    "train_exits",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mess' has no attribute {name!r}")
    try:
        module = importlib.import_module(_HOMES[name])
        value = module if name == "losses" else getattr(module, name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"mess.{name} needs the torch extra: pip install 'mess[torch]' ({error})") from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
