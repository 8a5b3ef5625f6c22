"""What is installed, what of it works here, and how to get the rest. Standard library and `mess_core` alone.

A check really does something: a product of matrices in torch, an ONNX file in a back end.
"""

from __future__ import annotations

import base64
import importlib
import importlib.metadata
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import mess_core

ADDITION = base64.b64decode("CAoSADo1Cg4KAXgKAXgSAXkiA0FkZBIBZ1oPCgF4EgoKCAgBEgQKAggCYg8KAXkSCgoICAESBAoCCAJCBAoAEBI=")
"""An ONNX file: y = x + x, both (2,) float32."""

State = Literal["works", "missing", "broken"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One part: what it is for, what it said, and what to do where it does not work (else None)."""

    name: str
    purpose: str
    state: State
    told: str
    remedy: str | None


def diagnose() -> list[Finding]:
    """Every part, the needed ones first."""
    return [_checked(*part) for part in _PARTS]


def text(findings: list[Finding]) -> str:
    """A line a part; below it the remedy, where there is one to tell."""
    width = max(len(part.name) for part in findings)
    lines = []
    for part in findings:
        lines.append(f"{part.state:8}{part.name:{width + 2}}{part.told}")
        if part.remedy is not None:
            lines.append(f"{'':8}{'':{width + 2}}for {part.purpose}: {part.remedy}")
    return "\n".join(lines)


def main(*, as_json: bool) -> int:
    """Print the findings; the exit status is 1 where something is broken (missing is a choice)."""
    findings = diagnose()
    print(json.dumps([asdict(part) for part in findings]) if as_json else text(findings))
    return int(any(part.state == "broken" for part in findings))


class UnfitError(Exception):
    """A part that no installation mends."""

    def __init__(self, said: str, remedy: str) -> None:
        super().__init__(said)
        self.remedy = remedy


def _core() -> str:
    info = mess_core.build_info()
    value = mess_core.image_confidence([[[9.0, 0.0]], [[0.0, 0.0]]], pixel_threshold=0.9, refine=False)
    if value != 0.5:
        raise RuntimeError(f"image_confidence: expected 0.5, got {value}")
    if info["profile"] != "release":
        raise UnfitError("built without optimisation, many times slower than a release", "maturin develop --release")
    return (
        f"{info['version']} ({info['commit'] or 'commit unknown'}), {info['instruction_set']} of "
        f"{', '.join(info['instruction_sets'])}, {info['threads']} threads, NumPy {info['numpy']}"
    )


def _torch() -> str:
    torch = importlib.import_module("torch")
    importlib.import_module("torchvision")
    if float((torch.ones(2, 2) @ torch.ones(2, 2)).sum()) != 8:
        raise RuntimeError("a product of matrices is wrong")
    device = "no GPU"
    if torch.cuda.is_available():
        torch.ones(2, device="cuda").sum().item()
        device = torch.cuda.get_device_name()
    return f"{torch.__version__}, {torch.get_num_threads()} threads, {device}"


def _onnxruntime() -> str:
    library = importlib.import_module("onnxruntime")
    session = library.InferenceSession(ADDITION, providers=["CPUExecutionProvider"])
    return _added(session.run(None, {"x": _ones()})[0], library.__version__)


def _openvino() -> str:
    library = importlib.import_module("openvino")
    core = library.Core()
    return _added(core.compile_model(core.read_model(ADDITION), "CPU")({"x": _ones()})[0], library.__version__)


def _ones() -> Any:
    return importlib.import_module("numpy").ones(2, dtype="float32")


def _added(found: Any, version: str) -> str:
    if list(found) != [2.0, 2.0]:
        raise RuntimeError(f"1 + 1 is {list(found)}")
    return version


def _imported(*packages: str) -> Callable[[], str]:
    def check() -> str:
        for package in packages:
            importlib.import_module(package.replace("-", "_"))
        return ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)

    return check


def _checked(name: str, purpose: str, extra: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, purpose, "works", check(), None)
    except UnfitError as error:
        return Finding(name, purpose, "broken", str(error), error.remedy)
    except ModuleNotFoundError as error:
        return Finding(name, purpose, "missing", f"{error.name} is not installed", f"pip install '{extra}'")
    except Exception as error:  # whatever a library raises, it is what the user needs to see
        said = next(iter(str(error).splitlines()), "")
        remedy = f"pip install --force-reinstall '{extra}'"
        return Finding(name, purpose, "broken", f"{type(error).__name__}: {said}", remedy)


def _disk() -> str:
    free = shutil.disk_usage(".").free
    if free < 1 << 30:
        raise UnfitError(f"{free / 1e9:.2f} GB free here", "free some space, or work in another folder")
    return f"{free / 1e9:.0f} GB free here"


_PARTS: tuple[tuple[str, str, str, Callable[[], str]], ...] = (
    ("core", "the exit decision and the search", "mess", _core),
    ("disk", "runs and tables", "mess", _disk),
    ("torch", "training, calibration, deployment in torch", "mess[torch]", _torch),
    ("training", "mess train", "mess[torch]", _imported("lightning-fabric", "safetensors", "scipy", "greenlet")),
    ("pictures", "mess picture, figures", "mess[torch]", _imported("matplotlib", "rich")),
    ("report", "mess report", "mess[report]", _imported("plotly")),
    ("export", "mess export", "mess[onnx]", _imported("onnx", "onnxscript")),
    ("onnxruntime", "mess.Runtime", "mess[runtime]", _onnxruntime),
    ("openvino", "mess.Runtime(backend='openvino')", "mess[openvino]", _openvino),
    ("tensorboard", "mess train --tensorboard", "mess[tensorboard]", _imported("tensorboard")),
    ("ray", "--engine ray", "mess[ray]", _imported("ray")),
    ("pyarrow", "mess search --sweep", "mess[ray]", _imported("pyarrow")),
    ("hub", "mess share --push-to-hub", "mess[hub]", _imported("huggingface-hub")),
    ("transformers", "--model hf:", "transformers", _imported("transformers")),
    ("smp", "--model smp:", "segmentation-models-pytorch", _imported("segmentation-models-pytorch")),
)
