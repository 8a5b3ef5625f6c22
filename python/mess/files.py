"""Files written whole or not at all, and read with errors that say what is wrong. Weights and tables are safetensors
files whose header has one entry `mess`, a JSON object with a `version`: no pickle anywhere."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import importlib
import json
import math
import operator
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
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

    Whatever interrupts it, `path` holds its old content or the whole new one, also when several threads, processes or
    machines write it at once: that of the last one to end.

    Raises:
        IsADirectoryError: `path` is a folder.
        ValueError: it is a device or a pipe.
    """
    expect_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent, rf"{re.escape(OURS)}[0-9a-f]+-{re.escape(path.name)}")
    temporary = path.with_name(f"{OURS}{_token()}-{path.name}")  # keeps the suffix, which some writers go by
    try:
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode  # as the umask has it: some writers make files that only their owner can read
        write(temporary)
        _flush(temporary)
        temporary.chmod(mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _token() -> str:
    """Of a temporary name that nobody else has, on no machine that writes to the same folder."""
    return secrets.token_hex(4)


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
def whole_folder(path: Path, *, last: str) -> Iterator[Path]:
    """A temporary folder, which becomes `path` when the block ends well, and is deleted otherwise.

    Its files are flushed to the disk before that. Of a link, the folder that it leads to is replaced. A folder that
    cannot be renamed (a mount point, one of another layer of a container, the current one) gets the new files in place
    of all that is there.

    Args:
        last: the file without which nobody takes the folder for whole; of a folder that stays it goes first and comes
            last.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    stays = path.is_dir() and (os.path.ismount(path) or _is_here(path) or not os.access(path.parent, os.W_OK))
    home = path if stays else path.parent
    sweep(home, rf"{re.escape(OURS)}{re.escape(path.name)}-[a-z0-9_]{{8}}")
    temporary = home / f"{OURS}{path.name}-{_token()}"
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _flush(file)
        if stays:
            _fill(path, temporary, last)
        else:
            replace_folder(temporary, path, last=last)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_here(path: Path) -> bool:
    """Whether this process stands in a folder, or below it."""
    try:
        return Path.cwd().is_relative_to(path)
    except FileNotFoundError:  # it was deleted
        return False


def replace_folder(new: Path, path: Path, *, last: str) -> None:
    """Give `new` the name `path`, and delete the folder that had it, if any.

    On Linux the two are exchanged in one step, so that `path` always holds the old folder or the new one, whatever
    kills the process. Elsewhere it is without a folder for a moment, and the old one beside it, as `.mess-<name>.old`.
    A folder that cannot be renamed is filled, as in `whole_folder`.
    """
    if not path.exists():
        new.replace(path)
        return
    if not _exchanged(new, path):
        old = path.with_name(f"{OURS}{path.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        try:
            path.replace(old)
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.EXDEV):  # such as a file that is open, on Windows
                raise
            _fill(path, new, last)
        else:
            new.replace(path)
            new = old
    shutil.rmtree(new, ignore_errors=True)


def _fill(path: Path, new: Path, last: str) -> None:
    """Put the files of `new` in place of all that is in the folder `path`."""
    (path / last).unlink(missing_ok=True)
    for old in path.iterdir():
        if old.name.startswith(OURS):
            continue  # the new files, or those of another process
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old)
        else:
            old.unlink()
    for file in sorted(new.iterdir(), key=lambda file: file.name == last):
        shutil.move(file, path / file.name)  # between file systems it is copied
        if (path / file.name).is_file():
            _flush(path / file.name)


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
    with path.open("r+b") as file:  # Windows flushes no file that is open for reading
        os.fsync(file.fileno())


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
    names = {path.name for path in folder.iterdir() if not path.name.startswith(OURS)} if folder.is_dir() else set()
    if not folder.exists() or (folder.is_dir() and not names):
        return
    what = f"out: expected a new or empty folder, or an earlier one of these, got {folder}"
    if not (folder / file).is_file():
        raise ValueError(f"{what} (no {file} there)")
    value = read_json(folder / file, "out")
    if value.get("format") != kind:
        raise ValueError(f"{what} ({file} is of no {kind!r})")
    others = names - {file, *holds(value)}
    if others:
        raise ValueError(f"{what}, in which {sorted(others)[0]!r} would be lost")


def expect_file(path: Path) -> None:
    """IsADirectoryError when what is written to `path` would replace a folder; ValueError for a device or pipe."""
    if path.is_dir():
        raise IsADirectoryError(f"out: expected the name of a file to write, got the folder {path}")
    if path.exists() and not path.is_file():
        raise ValueError(f"out: expected the name of a file to write, got {path}, a device or a pipe")


def files_in(folder: Path, pattern: str) -> dict[str, Path]:
    """The files of a folder by their names without the suffix, sorted, those aside that are hidden or being written."""
    return {path.stem: path for path in sorted(folder.glob(pattern)) if not path.name.startswith(".")}


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


def palette_of(colours_given: Iterable[Sequence[int]]) -> tuple[tuple[int, int, int], ...]:
    """The colours of classes as files have them.

    Raises:
        ValueError: no integers of 0..255, such as colours of 0..1.
    """
    try:
        rows = [[operator.index(value) for value in colour] for colour in colours_given]
    except TypeError:
        got = str(colours_given)[:60]
        raise ValueError(f"palette: expected integers 0..255, red, green, blue, for each class, got {got}") from None
    return colours({"palette": rows}, "palette")


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
