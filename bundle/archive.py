"""Opening files that may be hostile: a bundle's zip and its weights, checked before a byte is unpacked or unpickled."""

from __future__ import annotations

import os
import pickletools
import re
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch

from bundle.volume_io import one_line

MOST_FILES = 1000
USERS_FOLDERS = ("data", "eval", "results", "runs")  # where a bundle reads and writes when it is used
MOST_BYTES = 2 * 2**30
LARGEST_RATIO = 200  # of a file's size to its size in the archive, beyond the first MiB
TENSOR_NAMES = re.compile(
    r"torch\._utils _rebuild_tensor_v2|torch\._utils _rebuild_parameter|collections OrderedDict|torch \w+Storage|"
    r"torch\.storage UntypedStorage"
)


def unpack(path: Path, into: Path) -> Path:
    """Unpack a zip with one top folder, and return that folder; every name and size is checked first.

    Raises ValueError, one line: no zip, a name that is absolute or climbs or occurs twice, a link, too many files, too
    many bytes or too large a ratio of compression.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_entries(entries)
            for entry in entries:
                target = into / entry.filename
                if entry.is_dir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(entry) as source, open(target, "xb") as file:
                    _copy(source, file, entry)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"is no readable zip: {one_line(error)}") from error
    tops = sorted(into.iterdir())
    if len(tops) != 1 or not tops[0].is_dir():
        raise ValueError(f"holds {len(tops)} things at its top; a bundle's zip holds one folder with the bundle's name")
    return tops[0]


def _check_entries(entries: list[zipfile.ZipInfo]) -> None:
    if len(entries) > MOST_FILES:
        raise ValueError(f"holds {len(entries)} files, more than {MOST_FILES}")
    total = sum(entry.file_size for entry in entries)
    if total > MOST_BYTES:
        raise ValueError(f"unpacks to {total / 2**30:.1f} GiB, more than {MOST_BYTES / 2**30:g}")
    seen = set()
    for entry in entries:
        name, kind = entry.filename, stat.S_IFMT(entry.external_attr >> 16)
        parts = name.rstrip("/").split("/")
        if name != entry.orig_filename or re.search(r'[\\:<>"|?*\x00-\x1f]', name) or name.startswith("/"):
            raise ValueError(f"names the path {entry.orig_filename!r}, which is absolute or not portable")
        if any(part in ("", ".", "..") for part in parts):
            raise ValueError(f"names the path {name!r}, which leaves its folder")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ValueError(f"{name!r} is a link or device, not a file")
        if name.rstrip("/").casefold() in seen:
            raise ValueError(f"{name!r} occurs twice")
        seen.add(name.rstrip("/").casefold())
        if entry.flag_bits & 1:
            raise ValueError(f"{name!r} is encrypted")
        if entry.file_size > 2**20 and entry.file_size > LARGEST_RATIO * max(1, entry.compress_size):
            raise ValueError(f"{name!r} grows {entry.file_size / max(1, entry.compress_size):.0f} times when unpacked")


def _copy(source, file, entry: zipfile.ZipInfo) -> None:
    """Copy no more bytes than the archive's directory announced; zipfile checks the CRC at the end."""
    left = entry.file_size
    while chunk := source.read(2**20):
        left -= len(chunk)
        if left < 0:
            raise ValueError(f"{entry.filename!r} is larger than the archive says")
        file.write(chunk)


def check_files(folder: Path) -> None:
    """Raise ValueError, one line, for links, devices or masses of data in a folder, but where its use leaves data."""
    total = 0
    for root, folders, files in os.walk(folder):
        if Path(root) == folder:
            folders[:] = [name for name in folders if name not in USERS_FOLDERS]
        for name in (*folders, *files):
            path = Path(root, name)
            mode = path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise ValueError(f"{path.relative_to(folder)} is a link or device, not a file")
        total += sum(Path(root, name).lstat().st_size for name in files)
        if total > MOST_BYTES:
            raise ValueError(f"holds more than {MOST_BYTES / 2**30:g} GiB")


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """A flat state dict of plain tensors, on the CPU.

    The pickle inside is first read without executing it, and may name nothing but tensors. Raises ValueError, one line,
    for anything else: a legacy pickle, code, a nested checkpoint, sparse or infinite values.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError("is no file of torch.save's zip format; older pickles are refused")
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("is compressed inside, which torch.save never does")
        pickles = [entry for entry in entries if entry.filename.endswith(".pkl")]
        if [Path(entry.filename).name for entry in pickles] != ["data.pkl"]:
            raise ValueError("does not hold the one pickle of a state dict")
        for name in _named_in_pickle(archive.read(pickles[0])):
            if not TENSOR_NAMES.fullmatch(name):
                raise ValueError(f"its pickle names {name.replace(' ', '.')}; weights may name nothing but tensors")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises anything from EOFError to struct.error
        raise ValueError(f"torch.load(weights_only=True) cannot read it: {one_line(error)[:200]}") from error
    if not isinstance(state, dict) or not state:
        raise ValueError(f"holds a {type(state).__name__}, not a state dict")
    nested = [str(key) for key, value in state.items() if not torch.is_tensor(value)]
    if nested:
        raise ValueError(f"is a nested checkpoint ({', '.join(nested[:4])}), not a flat state dict of tensors")
    size = path.stat().st_size
    for key, value in state.items():
        if value.layout != torch.strided or value.is_quantized or value.numel() * value.element_size() > size:
            raise ValueError(f"{key} is no plain dense tensor")
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(f"{key} holds values that are not finite")
    return state


def _named_in_pickle(data: bytes) -> Iterator[str]:
    """'module name' of everything that a pickle would import; forms that torch does not write as their opcode."""
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name in ("GLOBAL", "INST"):
                yield str(argument)
            elif opcode.name in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4"):
                yield opcode.name
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"its pickle is damaged: {one_line(error)}") from error
