"""Whether a bundle from elsewhere is whole, fits this installation and may be run; nothing is executed before that.

A bundle is a zip or folder that ``bundle.package`` packed, or a folder of promoted weights (``models/<name>``). Configs
are read against the allow-list of ``bundle.safe_config``, weights must be plain tensors, and the shipped Python files
are compared with this project's own. Nothing that a bundle ships is imported: its configs are run with this project's
code, unless the user trusts the bundle by name.

    python -m bundle.trust X.zip
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from monai.bundle import ConfigParser

from bundle.archive import USERS_FOLDERS, check_files, read_weights, unpack
from bundle.inference import load_weights
from bundle.model_config import ROOT, closure, walk
from bundle.safe_config import NETWORKS, problems
from bundle.volume_io import one_line, sha256

MOST_EXAMPLE_BYTES = 2**27
MOST_NUMBERS = 10**7  # of a network whose weights do not fit it
LOGITS_TOLERANCE = 1e-3  # of the largest logit: other processors add in another order
OWN_PACKAGE = __package__
NEEDED = (
    "LICENSE", "README.md", "configs/inference.json", "configs/metadata.json", "docs/README.md", "docs/record.json",
    "manifest.json", "models/example.npz", "models/model.pt", "requirements.txt",
)  # fmt: skip
ALLOWED = re.compile(
    r"LICENSE|README\.md|requirements\.txt|manifest\.json|configs/(inference|train|metadata)\.json|"
    r"configs/logging\.conf|docs/[\w.-]+\.(md|json|png)|models/(model\.pt|example\.npz)|scripts/segment\.py"
)
PROMOTED_NEEDED = ("README.md", "example.npz", "model.pt", "record.json")
PROMOTED_ALLOWED = re.compile(r"README\.md|record\.json|model\.pt|example\.npz|cases\.png")
# by Python, by a download from the hub, by the bundle's own configs
LEFT_BEHIND = re.compile(
    r"(.*/)?__pycache__/[^/]+\.pyc|\.gitattributes|\.cache/huggingface/.*|"
    rf"({'|'.join(USERS_FOLDERS)})/.*(?<!\.py)"
)


@dataclass(frozen=True)
class Finding:
    """One line of a verification. ok: True, False, or None for what is worth knowing and no reason to refuse."""

    check: str
    ok: bool | None
    text: str

    def __str__(self) -> str:
        text = "".join(c if c.isprintable() else "?" for c in self.text)  # a bundle's own words may hold control codes
        return f"{'note' if self.ok is None else 'ok' if self.ok else 'FAIL':<4}  {self.check}: {text}"


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk, its config renamed so that this project's own package runs it.

    folder: unpacked. record: what was measured. config: the inference config. weights, example: files.
    notes: findings that are no reason to refuse it here.
    """

    name: str
    folder: Path
    record: dict
    config: dict
    weights: Path
    example: Path
    notes: tuple[str, ...] = ()

    def parser(self) -> ConfigParser:
        """MONAI's parser of the inference config."""
        parser = ConfigParser(json.loads(json.dumps(self.config)))
        parser["bundle_root"] = str(self.folder)
        return parser

    def network(self) -> torch.nn.Module:
        """The network with its weights, in evaluation mode on the CPU. Raises ValueError if they do not fit."""
        network = self.parser().get_parsed_content("network_def")
        load_weights(network, self.weights)
        return network.eval()


def verify(path: str | os.PathLike, trust: str | None = None) -> list[Finding]:
    """Everything found out about a bundle, a line each; it is good if no finding is False.

    path: a zip or a folder.
    trust: the name of a bundle whose failures become notes; an archive that may not be unpacked and weights that are
        not plain tensors stay failures.
    Raises FileNotFoundError if there is nothing at ``path``.
    """
    with _examined(Path(path), trust) as (findings, _):
        return findings


def failures(findings: list[Finding]) -> list[Finding]:
    """Those that are a reason to refuse."""
    return [finding for finding in findings if finding.ok is False]


@contextlib.contextmanager
def opened(path: str | os.PathLike, trust: str | None = None, foreign_code: bool = True) -> Iterator[Bundle]:
    """A verified bundle, unpacked for the duration of the block.

    Python files that are not this project's are no reason to refuse it, since this project's own run in their
    place, unless ``foreign_code`` is off. Raises FileNotFoundError if there is none; ValueError, one line, with the
    first failure of ``verify``.
    """
    with _examined(Path(path), trust) as (findings, bundle):
        failed = [finding for finding in failures(findings) if finding.check != "code" or not foreign_code]
        if failed:
            more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
            raise ValueError(
                f"{path}: refused: {failed[0].check}: {failed[0].text}{more}; scripts/share.py verify lists every check"
            )
        yield replace(bundle, notes=tuple(f"{f.check}: {f.text}" for f in findings if not f.ok))


@contextlib.contextmanager
def _examined(path: Path, trust: str | None) -> Iterator[tuple[list[Finding], Bundle | None]]:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such bundle; give a zip or a folder")
    with tempfile.TemporaryDirectory(prefix="bundle-") as scratch:
        try:
            folder = path.resolve() if path.is_dir() else unpack(path, Path(scratch))
            check_files(folder)
        except ValueError as error:
            yield [Finding("archive", False, str(error))], None
            return
        checks = _Checks(folder, path, trust)
        bundle = checks.all()
        yield checks.findings, bundle


class _Checks:
    """The checks of one bundle's folder, in order, and their findings."""

    def __init__(self, folder: Path, source: Path, trust: str | None) -> None:
        self.folder, self.source = folder, source
        self.trusted = trust is not None and trust == folder.name
        self.promoted = (folder / "record.json").is_file() and not (folder / "configs").exists()
        self.weights = folder / ("model.pt" if self.promoted else "models/model.pt")
        self.example = folder / ("example.npz" if self.promoted else "models/example.npz")
        self.package, self.foreign = OWN_PACKAGE, False
        self.record: dict = {}
        self.configs: dict[str, dict] = {}
        self.numbers = 0  # in the weights
        self.findings: list[Finding] = []
        if trust is not None and not self.trusted:
            self._note("trust", f"{trust!r} is not the name of this bundle, {folder.name!r}")

    def _note(self, check: str, text: str) -> None:
        self.findings.append(Finding(check, None, text))

    def _passes(self, check: str, function: Callable[[], str], always: bool = False) -> bool:
        """Add what a check says; a failure of a trusted bundle is a note, unless it counts ``always``."""
        try:
            self.findings.append(Finding(check, True, function()))
            return True
        except Exception as error:  # a hostile file may provoke anything; it is one line, and the bundle is refused
            text = one_line(error) if isinstance(error, ValueError) else f"{type(error).__name__} {one_line(error)}"
            self.findings.append(Finding(check, None if self.trusted and not always else False, text[:500]))
            return False

    def all(self) -> Bundle | None:
        """Run every check; the bundle, or None if it must not be used."""
        if not self._passes("record", self._record, always=True):
            return None
        self._passes("files", self._files_belong)
        left = sum(path.is_file() for path in self.folder.rglob("*")) - len(self._files())
        if left:
            self._note(
                "left behind",
                f"{left} files of its use (data, results, compiled Python) are not checked; delete __pycache__ before "
                "Python runs a folder that others could write to",
            )
        self._passes("manifest", self._manifest)
        self._passes("weights", self._weights, always=True)
        self._passes("configs", self._configs)
        if not self.promoted:
            self._passes("code", self._code)
            self._passes("metadata", self._metadata)
            self._passes("requirements", self._requirements)
        self._passes("versions", self._versions)
        self._passes("classes", self._classes)
        if any(finding.check != "code" for finding in failures(self.findings)):
            self._note("network", "not run, since a check before it failed")
            return None
        config = self.configs["inference.json"]
        if self._runs() != OWN_PACKAGE:  # the user has said so by name
            sys.path.append(str(self.folder))
        else:
            config = json.loads(renamed(json.dumps(config), self.package, OWN_PACKAGE))
        bundle = Bundle(self.folder.name, self.folder, self.record, config, self.weights, self.example)
        self._passes("network", lambda: self._network(bundle))
        return bundle

    def _files(self) -> list[str]:
        """What counts as the bundle: of a folder not what its use has left in it."""
        names = [path.relative_to(self.folder).as_posix() for path in sorted(self.folder.rglob("*")) if path.is_file()]
        return [name for name in names if self.source.is_file() or not LEFT_BEHIND.fullmatch(name)]

    def _json(self, name: str) -> dict:
        try:
            content = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"{name}: {one_line(error)}") from error
        if not isinstance(content, dict):
            raise ValueError(f"{name}: holds a {type(content).__name__}, not an object")
        return content

    def _record(self) -> str:
        """Read the record and the configs, which every later check needs."""
        if not (self.folder / ("record.json" if self.promoted else "docs/record.json")).is_file():
            raise ValueError("docs/record.json is missing: no bundle of this project, or not all of it")
        self.record = self._json("record.json" if self.promoted else "docs/record.json")
        name, of = self.record["name"], self.record["version"]
        if self.promoted:
            self.configs["inference.json"] = self.record["config"]
            return f"promoted weights {name} {of}"
        self.package = str(self.record["package"])
        if not re.fullmatch(r"[a-z]\w*", self.package):
            raise ValueError(f"docs/record.json: {self.package!r} is no name of a package")
        for path in sorted((self.folder / "configs").glob("*.json")):
            self.configs[path.name] = self._json(f"configs/{path.name}")
        missing = [file for file in ("inference.json", "metadata.json") if file not in self.configs]
        if missing:
            raise ValueError(f"configs/{missing[0]} is missing")
        return f"bundle {name} {of}"

    def _files_belong(self) -> str:
        files = self._files()
        needed, allowed = (PROMOTED_NEEDED, PROMOTED_ALLOWED) if self.promoted else (NEEDED, ALLOWED)
        code = re.compile(rf"{self.package}/\w+\.(py|json)")
        missing = [name for name in needed if name not in files]
        if missing:
            raise ValueError(f"{', '.join(missing)} is missing")
        strange = [n for n in files if not allowed.fullmatch(n) and (self.promoted or not code.fullmatch(n))]
        if strange:
            raise ValueError(f"{', '.join(strange)} does not belong into a bundle")
        return f"{len(files)}, all that a bundle needs and no other"

    def _manifest(self) -> str:
        listed = self.record["files"] if self.promoted else self._json("manifest.json")
        own = "record.json" if self.promoted else "manifest.json"
        files = [name for name in self._files() if name != own]
        changed = [name for name in files if name in listed and sha256(self.folder / name) != listed[name]]
        for names, what in (
            ([name for name in files if name not in listed], "is not in the manifest"),
            ([name for name in listed if name not in files], "is in the manifest and missing"),
            (changed, "was changed since it was packed"),
        ):
            if names:
                raise ValueError(f"{', '.join(names)} {what}")
        return f"{len(files)} files, each as it was packed (SHA-256)"

    def _weights(self) -> str:
        state = read_weights(self.weights)
        self.numbers = sum(value.numel() for value in state.values())
        return f"{len(state)} plain tensors, {self.numbers:,} numbers, no code"

    def _configs(self) -> str:
        package = OWN_PACKAGE if self.promoted else self.package
        folder = self.folder / package if self.trusted and not self.promoted else ROOT / OWN_PACKAGE
        found = []
        for name, config in self.configs.items():
            if name == "metadata.json":
                found += [f"{name}: {text!r} is no metadata" for text in _expressions(config)]
            else:
                found += [f"{name}: {problem}" for problem in problems(config, package, folder)]
        logging_conf = self.folder / "configs/logging.conf"
        if logging_conf.is_file() and logging_conf.read_bytes() != (ROOT / "configs/logging.conf").read_bytes():
            found.append("logging.conf: differs from this project's, and Python evaluates what it says")
        if found:
            raise ValueError(found[0] + (f" (and {len(found) - 1} more)" if len(found) > 1 else ""))
        return f"{', '.join(self.configs)}: every expression, import and class is on the allow-list"

    def _code(self) -> str:
        paths = [name for name in self._files() if name.endswith(".py") or name.startswith(f"{self.package}/")]
        earlier = [name for name in paths if not self._is_ours(name)]
        foreign = [name for name in earlier if not self._was_ours(name)]
        if foreign:
            self.foreign = True
            raise ValueError(
                f"{', '.join(foreign)} is not this project's, or of a version that is unknown here; this project runs "
                "its own instead, but MONAI would run it: read it before"
            )
        of = f"{len(earlier)} of an earlier revision" if earlier else "of this version"
        return f"{len(paths)} files, all of them this project's own, {of}"

    def _own_name(self, name: str) -> str:
        return re.sub(rf"^{self.package}/", f"{OWN_PACKAGE}/", name)

    def _is_ours(self, name: str) -> bool:
        own = ROOT / self._own_name(name)
        if not own.is_file():
            return False
        text = (self.folder / name).read_text(encoding="utf-8")
        return text == renamed(own.read_text(encoding="utf-8"), OWN_PACKAGE, self.package)

    def _was_ours(self, name: str) -> bool:
        """Whether the file, under this project's names, was ever committed to the repository this runs in."""
        text = renamed((self.folder / name).read_text(encoding="utf-8"), self.package, OWN_PACKAGE).encode()
        blob = hashlib.sha1(b"blob %d\0" % len(text) + text, usedforsecurity=False).hexdigest()
        command = ["git", "-C", str(ROOT), "cat-file", "-e", blob]
        try:
            return (ROOT / ".git").exists() and subprocess.run(command, capture_output=True, timeout=10).returncode == 0
        except (OSError, subprocess.SubprocessError):
            return False

    def _metadata(self) -> str:
        metadata, record = self.configs["metadata.json"], self.record
        checked = _check_schema(metadata)
        if metadata["version"] not in metadata["changelog"]:
            raise ValueError(f"metadata.json: version {metadata['version']} is not in the changelog")
        of_record = (record["name"], record["version"])
        stated = re.fullmatch(r"(.+)_v(\d.*)\.zip", self.source.name)
        for what, others in (
            ("folder and metadata.json", (self.folder.name, metadata["version"])),
            ("file name", stated.groups() if stated else of_record),
        ):
            if others != of_record:
                raise ValueError(f"the {what} say {' '.join(others)}, the record {' '.join(of_record)}")
        return f"{' '.join(of_record)}, {checked}"

    def _requirements(self) -> str:
        lines = (self.folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
        known = {line.split("==")[0] for line in (ROOT / "requirements.txt").read_text().splitlines() if "==" in line}
        pins = dict(line.split("==") for line in lines if re.fullmatch(r"[a-z0-9-]+==[\w.]+", line))
        strange = [line for line in lines if "==" not in line or line.split("==")[0] not in pins.keys() & known]
        if strange:
            raise ValueError(f"requirements.txt: {strange[0]!r} is no pinned package that this project uses")
        odd = sorted(dict(required_versions(self.configs["metadata.json"]).items() ^ pins.items()))
        if odd:
            raise ValueError(f"requirements.txt and metadata.json differ in {', '.join(odd)}")
        return f"{len(pins)} pinned packages"

    def _versions(self) -> str:
        stated = self.record["versions"] if self.promoted else required_versions(self.configs["metadata.json"])
        too_old, newer = [], []
        for name, wanted in stated.items():
            installed = _installed(name)
            if installed is None:
                too_old.append(f"{name} {wanted} is not installed")
            elif _numbers(installed) < _numbers(wanted):
                too_old.append(f"{name} is {installed} here, and the bundle needs {wanted}")
            elif _numbers(installed) > _numbers(wanted):
                newer.append(f"{name} {installed} for {wanted}")
        if too_old:
            raise ValueError(f"{'; '.join(too_old)}: pip install -r requirements.txt")
        return (
            "newer than where it was packed: " + ", ".join(newer) if newer else "the packages are as it was packed with"
        )

    def _classes(self) -> str:
        names = self.configs["inference.json"]["class_names"]
        stated = {"the record": self.record["classes"]}
        if not self.promoted:
            channels = self.configs["metadata.json"]["network_data_format"]["outputs"]["pred"]["channel_def"]
            stated["metadata.json"] = [channels[str(k)] for k in range(len(channels))]
        for where, others in stated.items():
            if others != names:
                raise ValueError(f"inference.json has {len(names)}, {names}, and {where} {len(others)}, {others}")
        return ", ".join(names)

    def _network(self, shared: Bundle) -> str:
        """Build the network, load the weights, and compare one forward pass with the stored one."""
        for target in _targets(shared.config, "network_def"):
            if target.rpartition(".")[2] not in NETWORKS and not target.startswith(f"{self._runs()}.networks."):
                raise ValueError(f"network_def needs {target}, which is no network")
        image, expected = self._stored_example()
        self._fits_in_memory(shared)
        network = shared.network()
        with torch.inference_mode():
            logits = network(torch.from_numpy(image)).float().numpy()
        if logits.shape != expected.shape or logits.shape[1] != len(self.record["classes"]):
            raise ValueError(f"gives {logits.shape[1]} channels for {len(self.record['classes'])} classes")
        difference = float(np.abs(logits - expected).max() / np.abs(expected).max())
        if not difference <= LOGITS_TOLERANCE:
            raise ValueError(f"its logits of the stored image are off by {difference:.1e} of the largest")
        how = f"to {difference:.0e} of the largest" if difference else "exactly"
        return f"reproduces the stored logits of a test image {how}"

    def _runs(self) -> str:
        """The package whose code runs the configs."""
        return self.package if self.trusted and self.foreign else OWN_PACKAGE

    def _stored_example(self) -> tuple[np.ndarray, np.ndarray]:
        """Image and logits of the stored example, which is no larger than it says and holds nothing else."""
        with zipfile.ZipFile(self.example) as archive:
            entries = {entry.filename: entry.file_size for entry in archive.infolist()}
        if sorted(entries) != ["image.npy", "logits.npy"] or len(archive.infolist()) != 2:
            raise ValueError(f"{self.example.name} holds {', '.join(sorted(entries))[:200]}, not image and logits")
        if sum(entries.values()) > MOST_EXAMPLE_BYTES:
            raise ValueError(f"{self.example.name} unpacks to more than {MOST_EXAMPLE_BYTES / 2**20:g} MiB")
        with np.load(self.example, allow_pickle=False) as stored:
            image, expected = stored["image"], stored["logits"]
        if image.dtype != np.float32 or expected.dtype != np.float32:
            raise ValueError(f"{self.example.name} holds {image.dtype} and {expected.dtype}, not float32")
        return image, expected

    def _fits_in_memory(self, shared: Bundle) -> None:
        """That the network is not far larger than its weights, before memory is taken for it."""
        with torch.device("meta"):
            try:
                network = shared.parser().get_parsed_content("network_def")
            except (NotImplementedError, RuntimeError):  # a network that computes while it is built
                return
        wanted = sum(value.numel() for value in network.state_dict().values())
        if wanted > 2 * self.numbers + MOST_NUMBERS:
            raise ValueError(f"network_def has {wanted:,} numbers, and the weights {self.numbers:,}")


def _targets(config: Mapping, key: str) -> list[str]:
    """Every class that a top-level key of a config needs."""
    items = [value for name in closure(config, [key]) for _, value in walk(config[name]) if isinstance(value, Mapping)]
    return [item["_target_"] for item in items if "_target_" in item]


def renamed(text: str, old: str, new: str) -> str:
    """Python or JSON text with the package ``old`` named ``new`` wherever it is imported or named with a dot.

    Each packed bundle has a package of its own name, since Python keeps one package a name in a process.
    """
    text = re.sub(rf"(?<![\w.]){old}(?=\.[A-Za-z_])", new, text)
    return re.sub(rf"((?<![\w.])(?:from|import) ){old}(?= import\b|\s*$)", rf"\1{new}", text, flags=re.MULTILINE)


def required_versions(metadata: Mapping) -> dict[str, str]:
    """Package → version of everything that MONAI's metadata require."""
    versions = {
        "monai": metadata["monai_version"],
        "torch": metadata["pytorch_version"],
        "numpy": metadata["numpy_version"],
    }
    return versions | dict(metadata.get("required_packages_version", {}))


def _check_schema(metadata: Mapping) -> str:
    try:
        import jsonschema  # a requirement of the tests, not of a bundle
    except ImportError:
        return "not checked against MONAI's schema, which takes jsonschema"
    schema = json.loads((Path(__file__).parent / "metadata_schema.json").read_text(encoding="utf-8"))
    try:
        jsonschema.validate(metadata, schema)
    except jsonschema.ValidationError as error:
        raise ValueError(f"metadata.json: {'/'.join(map(str, error.path))} {error.message}") from error
    return "fits MONAI's schema"


def _expressions(config: object) -> list[str]:
    """What MONAI would evaluate in metadata, where there is nothing to evaluate."""
    values = [(where, value) for where, value in walk(config) if isinstance(value, str)]
    return [value for where, value in values if value.startswith(("$", "%")) or where.endswith("_target_")]


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _numbers(text: str) -> tuple[int, ...]:
    """Major, minor and patch of a version, without what follows '+'."""
    return tuple(int(n) for n in re.findall(r"\d+", text.split("+")[0])[:3])


def print_findings(findings: list[Finding], name: str) -> int:
    """Print a verification; returns the exit code, 0 if nothing failed."""
    print(*findings, sep="\n")
    failed = len(failures(findings))
    print(f"{name}: " + (f"REFUSED, {failed} checks failed" if failed else "all checks passed"))
    return int(failed > 0)


if __name__ == "__main__":  # a packed bundle ships this module, and no scripts/share.py
    logging.disable(logging.WARNING)
    if len(sys.argv) != 2:
        sys.exit(f"usage: python -m {OWN_PACKAGE}.trust BUNDLE.zip")
    try:
        sys.exit(print_findings(verify(sys.argv[1]), Path(sys.argv[1]).name))
    except OSError as problem:
        sys.exit(str(problem))
