"""Files written whole or not at all, and read with errors that say what is wrong. Weights and tables are safetensors
files whose header has one entry `mess`, a JSON object with a `version`: no pickle anywhere."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib
import json
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

NUMPY_DTYPES = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8",
    "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8",
}  # fmt: skip
"""Of the types in a safetensors header."""

READ_TRIES = 20
"""Of a file that is replaced each time while it is read."""

OURS = ".mess-"
"""What names of temporary files and folders begin with: they may be deleted, and nobody else's."""

Result = TypeVar("Result")


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary file beside `path`, flush that to the disk, then rename it to `path`.

    Whatever interrupts it, `path` holds its old content or the whole new one.

    Raises:
        IsADirectoryError: `path` is a folder.
    """
    expect_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent, rf"{re.escape(OURS)}\d+-{re.escape(path.name)}")
    temporary = path.with_name(f"{OURS}{os.getpid()}-{path.name}")  # keeps the suffix, which some writers go by
    try:
        write(temporary)
        temporary.chmod(0o666 & ~_umask())  # some writers make files that only their owner can read
        _flush(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path, pattern: str) -> None:
    """Delete what killed writers left in `folder`: temporary files or folders that nobody touched for an hour.

    `pattern` is a regular expression for their whole name, of nothing but what the writers here give.
    """
    try:
        names = [path for path in folder.iterdir() if re.fullmatch(pattern, path.name)]
    except PermissionError:  # a folder that can be written and not listed
        return
    for path in names:
        with contextlib.suppress(FileNotFoundError):  # another process sweeps too
            if time.time() - path.lstat().st_mtime > 3600:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`, which becomes `path` when the block ends well, and is deleted otherwise.

    Its files are flushed to the disk before that. Of a link, the folder that it leads to is replaced.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent, rf"{re.escape(OURS)}{re.escape(path.name)}-[a-z0-9_]{{8}}")  # as mkdtemp names them
    temporary = Path(tempfile.mkdtemp(prefix=f"{OURS}{path.name}-", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        for file in temporary.rglob("*"):
            if file.is_file():
                _flush(file)
        replace_folder(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(new: Path, path: Path) -> None:
    """Give `new` the name `path`, and delete the folder that had it, if any.

    On Linux the two are exchanged in one step, so that `path` always holds the old folder or the new one, whatever
    kills the process. Elsewhere it is without a folder for a moment, and the old one beside it, as `.mess-<name>.old`.
    """
    if not path.exists():
        new.replace(path)
        return
    if not _exchanged(new, path):
        old = path.with_name(f"{OURS}{path.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        path.replace(old)
        new.replace(path)
        new = old
    shutil.rmtree(new, ignore_errors=True)


def _exchanged(a: Path, b: Path) -> bool:
    """Whether two names could be exchanged: renameat2(2) with RENAME_EXCHANGE, which Python does not offer."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(rename(here, os.fsencode(a), here, os.fsencode(b), exchange) == 0)


def _flush(path: Path) -> None:
    """Bring a file's content to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_safetensors(path: Path, tensors: Mapping[str, Any], header: Any) -> None:
    """NumPy arrays or torch tensors, and `header` (JSON) as the file's `mess` entry, whole or not at all.

    Raises:
        OSError: it cannot be written: no room, no right.
    """
    from safetensors import SafetensorError

    is_numpy = all(isinstance(value, np.ndarray) for value in tensors.values())
    library = importlib.import_module("safetensors.numpy" if is_numpy else "safetensors.torch")

    def save(temporary: Path) -> None:
        try:
            library.save_file(dict(tensors), temporary, metadata={"mess": json.dumps(header)})
        except SafetensorError as error:
            raise OSError(f"{path}: cannot be written: {error}") from None

    write_whole(path, save)


def json_text(value: Any, *, indent: int | None = None) -> str:
    """`value` as JSON, null where a number is not finite, which JSON cannot say."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list | tuple) else value


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON (`json_text`), whole or not at all."""
    text = json_text(value, indent=1) + "\n"
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


KINDS = {
    "run.json": "a run folder, for mess run, mess export and mess.load_run",
    "manifest.json": "a deployment, for mess.Runtime",
    "config.json": "a shared network, for mess run and mess.from_pretrained",
}
"""Of folders, by the file that tells."""

EXITS_FILE = "exits.safetensors"
"""Of a run folder: the trained multi-exit network (`mess.runs`)."""

WEIGHTS = "weights_sha256"
"""Of a table's facts and of a promise: the SHA-256 of the `EXITS_FILE` that they were measured with."""


def kind_of(folder: Path) -> str:
    """`; FOLDER is a ...`, for whoever expected another kind of folder; nothing when it is none of ours."""
    return next((f"; {folder} is {kind}" for name, kind in KINDS.items() if (folder / name).is_file()), "")


def expect_run(folder: Path) -> None:
    """FileNotFoundError unless `folder` is a run folder."""
    if not (folder / "run.json").is_file():
        made = kind_of(folder) or "; `mess train` makes one"
        raise FileNotFoundError(f"run: expected a run folder, got {folder} (no run.json there){made}")


def expect_replaceable(
    folder: Path, file: str, kind: str, holds: Callable[[Mapping[str, Any]], Collection[str]]
) -> None:
    """ValueError unless `folder` is new, empty, or an earlier one of its kind with nothing else in it: `file` there is
    a JSON object whose `format` is `kind`, and `holds` gives the names of the others from it."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    what = f"out: expected a new or empty folder, or an earlier one of these, got {folder}"
    if not (folder / file).is_file():
        raise ValueError(f"{what} (no {file} there)")
    value = read_json(folder / file, "out")
    if value.get("format") != kind:
        raise ValueError(f"{what} ({file} is of no {kind!r})")
    others = {path.name for path in folder.iterdir()} - {file, *holds(value)}
    if others:
        raise ValueError(f"{what}, in which {sorted(others)[0]!r} would be lost")


def expect_file(path: Path) -> None:
    """IsADirectoryError when what is to be written to `path` would replace a folder."""
    if path.is_dir():
        raise IsADirectoryError(f"out: expected the name of a file to write, got the folder {path}")


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The JSON object in `path`; `what` names it in errors.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a JSON object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{what}: expected a file, got {path} (no such file{kind_of(path.parent)})")
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or a number of thousands of digits
        raise ValueError(f"{what}: {path} is no complete JSON file: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{what}: {path}: expected a JSON object, got {type(value).__name__}")
    return value


_LARGEST = 1 << 63
"""Of an integer in a file; JSON knows no limit, float() and NumPy do."""


def entry(value: Any, name: str, kind: type | tuple[type, ...], expected: str) -> Any:
    """`value[name]` of a JSON object that was read, of that kind; true and false are no numbers.

    Raises:
        ValueError: no object, no such entry, or one of another kind; names it.
    """
    if not isinstance(value, Mapping) or name not in value:
        raise ValueError(f"{name}: expected {expected}, got nothing")
    found = value[name]
    kinds = kind if isinstance(kind, tuple) else (kind,)
    is_off = not isinstance(found, kinds) or (isinstance(found, bool) and bool not in kinds)
    if is_off or (isinstance(found, int) and abs(found) > _LARGEST):
        raise ValueError(f"{name}: expected {expected}, got {str(found)[:60]!r}")
    return found


def entries(value: Any, name: str, kind: type | tuple[type, ...], expected: str) -> tuple[Any, ...]:
    """As `entry`, of a list all of whose members are of that kind."""
    members = entry(value, name, list, f"a list of {expected}")
    return tuple(entry({name: member}, name, kind, f"a list of {expected}") for member in members)


def height_and_width(value: Any, name: str) -> tuple[int, int]:
    """As `entries`, of two numbers of pixels above 0."""
    found = entries(value, name, int, "height and width")
    if len(found) != 2 or min(found) < 1:
        raise ValueError(f"{name}: expected height and width above 0, got {found}")
    return found[0], found[1]


def colours(value: Any, name: str) -> tuple[tuple[int, int, int], ...]:
    """As `entries`, of [red, green, blue] in 0..255."""
    found = entries(value, name, list, "[red, green, blue]")
    for colour in found:
        if len(colour) != 3 or not all(type(x) is int and 0 <= x <= 255 for x in colour):
            raise ValueError(f"{name}: expected [red, green, blue] of 0..255 for each class, got {colour}")
    return tuple((r, g, b) for r, g, b in found)


def differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """What differs between two settings, for people: `epochs 3 there, 4 asked; ...`."""
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return "; ".join(f"{key} {old.get(key)!r} there, {new.get(key)!r} asked" for key in keys)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_safetensors(
    path: Path, what: str, *, framework: str, names: Collection[str] | None = None
) -> tuple[dict[str, Any], Any]:
    """The tensors of a safetensors file and the value of its header's `mess` entry, or None; `what` names it in errors.
    With `names`, only those. A file that is replaced meanwhile is read again, so header and tensors are of one file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, or no safetensors file.
    """
    from safetensors import SafetensorError, safe_open  # not needed to run a deployment

    def read() -> tuple[dict[str, Any], Any]:
        try:
            with safe_open(path, framework=framework) as file:
                header = json.loads((file.metadata() or {}).get("mess", "null"))
                wanted = file.keys() if names is None else names
                return {name: file.get_tensor(name) for name in wanted}, header
        except (SafetensorError, ValueError, RecursionError) as error:
            raise ValueError(f"{what}: {path} is truncated or no safetensors file: {error}") from None

    return _of_one_file(path, what, read)


def map_safetensors(path: Path, what: str) -> tuple[dict[str, npt.NDArray[Any]], Any]:
    """As `read_safetensors`, but the arrays are read-only maps of the file: pages are read when they are used.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, no safetensors file, or numbers that NumPy does not have.
    """

    def read() -> tuple[dict[str, npt.NDArray[Any]], Any]:
        _, header = read_safetensors(path, what, framework="numpy", names=())  # the library checks the file
        arrays: dict[str, npt.NDArray[Any]] = {}
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            entries = json.loads(file.read(length))
            entries.pop("__metadata__", None)
            for name, entry in entries.items():
                if entry["dtype"] not in NUMPY_DTYPES:
                    expected = f"expected one of {sorted(NUMPY_DTYPES)}, got {entry['dtype']}"
                    raise ValueError(f"{what}: {path}: {name}: {expected}")
                shape, dtype = tuple(entry["shape"]), NUMPY_DTYPES[entry["dtype"]]
                is_empty = 0 in shape  # which cannot be mapped
                start = 8 + length + entry["data_offsets"][0]
                arrays[name] = (
                    np.empty(shape, dtype)
                    if is_empty
                    else np.asarray(np.memmap(file, dtype, "r", offset=start, shape=shape))
                )
        return arrays, header

    return _of_one_file(path, what, read)


def _of_one_file(path: Path, what: str, read: Callable[[], Result]) -> Result:
    """What `read` returns or raises once the file was the same before and after it.

    safetensors opens a file by name twice, for its header and for its tensors, and a training that goes on replaces
    its checkpoints: the first could be of one file and the second of the next.
    """

    def identity() -> tuple[int, int, int]:
        found = path.stat()
        return found.st_ino, found.st_size, found.st_mtime_ns

    if not path.is_file():
        raise FileNotFoundError(f"{what}: expected a safetensors file, got {path} (no such file)")
    for _ in range(READ_TRIES):
        before = identity()
        try:
            result = read()
        except Exception:
            if identity() == before:
                raise
            continue
        if identity() == before:
            return result
    raise OSError(f"{what}: {path} was replaced {READ_TRIES} times while it was read")


def check_version(header: Any, version: int, what: str, path: Path) -> dict[str, Any]:
    """`header` itself when it is a JSON object of that version.

    Raises:
        ValueError: another version, or none.
    """
    found = header.get("version") if isinstance(header, dict) else "no mess header"
    if found != version:
        raise ValueError(f"{what}: {path}: expected version {version}, got {found}")
    checked: dict[str, Any] = header
    return checked
