"""Packing promoted weights as a MONAI bundle: a folder and a zip that run without this repository."""

from __future__ import annotations

import ast
import copy
import json
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from bundle.card import front_matter, metadata, model_card
from bundle.model_config import ROOT, walk
from bundle.record import read_record
from bundle.safe_config import problems
from bundle.trust import failures, opened, renamed, verify
from bundle.volume_io import atomic_path, sha256, write_json

PACKAGE = Path(__file__).parent
SCRIPTS = ("scripts/segment.py",)
ALWAYS = ("fire", "imagecodecs", "monai", "nibabel", "numpy", "pytorch-ignite", "tifffile", "torch")
DISTRIBUTIONS = {"ignite": "pytorch-ignite", "skimage": "scikit-image"}
NOT_PINNED = {"PIL", "jsonschema", "resource"}  # comes with matplotlib; optional; of Python where there is one
EARLIEST = (1980, 1, 1, 0, 0, 0)  # in a zip; the same files give the same bytes
ADD_ROOT = "$sys.path.append(os.path.abspath(@bundle_root))"


def pack(folder: Path, out: Path) -> tuple[Path, Path, list[str]]:
    """Pack promoted weights into ``out/<name>/`` and ``out/<name>_v<version>.zip``.

    folder: what ``bundle.record.promote`` wrote. The Python package inside is named after name and version, so that
    bundles do not collide in a process; it holds the modules that configs and ``segment.py`` need, and no other.

    Returns folder, zip, and what was left out and why. The same weights and record give the same bytes. Raises
    ValueError if the result does not pass ``bundle.trust.verify``, or a folder of that name is there and no bundle.
    """
    folder, out = Path(folder), Path(out)
    record = read_record(folder)
    name, version = record["name"], record["version"]
    target, archive = out / name, out / f"{name}_v{version}.zip"
    if failed := failures(verify(folder)):
        raise ValueError(f"{folder}: {failed[0].check}: {failed[0].text}; promote it again")
    if target.exists() and (strange := _not_packed(target)):
        raise ValueError(
            f"{target}: holds {strange}, which is no part of a packed bundle; move it, or choose another --out"
        )
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=out) as scratch:
        staging = Path(scratch) / name
        left_out = _write_bundle(record, folder, staging)
        with atomic_path(archive) as path:
            _zip(staging, path)
            if failed := failures(verify(staging)):
                raise ValueError(f"{name} {version} was not packed: {failed[0].check}: {failed[0].text}")
        if target.exists():
            target.rename(Path(scratch) / "old")
        staging.rename(target)
    return target, archive, left_out


def _not_packed(folder: Path) -> str | None:
    """The first thing in a folder that packing did not put there, or None."""
    try:
        listed = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        listed = {}
    files = [name for name in _files(folder) if not name.endswith(".pyc") and name != "manifest.json"]
    if "docs/record.json" not in listed:
        return files[0] if files else "no bundle"
    return next((name for name in files if name not in listed), None)


def _write_bundle(record: dict, source: Path, folder: Path) -> list[str]:
    package = f"{record['name']}_{record['version'].replace('.', '_')}"
    record = {key: value for key, value in record.items() if key != "files"} | {"package": package}
    configs = {"inference.json": record["config"]}
    left_out = []
    unsafe = problems(record["training"]["config"], __package__, PACKAGE)
    if unsafe:
        left_out.append(f"configs/train.json, whose {unsafe[0]}")
    else:
        configs["train.json"] = record["training"]["config"]
    modules = module_closure([*modules_named(configs.values()), "__init__", "trust"], [ROOT / s for s in SCRIPTS])
    sources = [PACKAGE / f"{module}.py" for module in modules] + [ROOT / script for script in SCRIPTS]
    pins = required_packages(sources, configs.values())

    for part in ("configs", "docs", "models", "scripts", package):
        (folder / part).mkdir(parents=True)
    for path in sources:
        place = package if path.parent == PACKAGE else "scripts"
        text = renamed(path.read_text(encoding="utf-8"), __package__, package)
        (folder / place / path.name).write_text(text, encoding="utf-8")
    shutil.copyfile(PACKAGE / "metadata_schema.json", folder / package / "metadata_schema.json")
    for file, config in configs.items():
        config = json.loads(renamed(json.dumps(config), __package__, package))
        write_json(folder / "configs" / file, _with_root_on_path(config))
    write_json(folder / "configs" / "metadata.json", metadata(record, pins))
    shutil.copyfile(ROOT / "configs" / "logging.conf", folder / "configs" / "logging.conf")
    shutil.copyfile(ROOT / "LICENSE", folder / "LICENSE")
    for file in ("model.pt", "example.npz"):
        shutil.copyfile(source / file, folder / "models" / file)
    picture = (source / "cases.png").is_file()
    if picture:
        shutil.copyfile(source / "cases.png", folder / "docs" / "cases.png")
    card = model_card(record, "cases.png" if picture else None, package)
    (folder / "docs" / "README.md").write_text(card, encoding="utf-8")
    card = model_card(record, "docs/cases.png" if picture else None, package)
    (folder / "README.md").write_text(front_matter(record) + card, encoding="utf-8")
    lines = [f"{distribution}=={pin}" for distribution, pin in sorted(pins.items())]
    (folder / "requirements.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_json(folder / "docs" / "record.json", record)
    write_json(folder / "manifest.json", {name: sha256(folder / name) for name in _files(folder)})
    return left_out


def _files(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]


def _with_root_on_path(config: dict) -> dict:
    """The config with the bundle's folder on Python's path from the start, where MONAI adds it only when it runs."""
    config = copy.deepcopy(config)
    config["imports"] = list(dict.fromkeys([*config.get("imports", []), "$import os", "$import sys"]))
    config["initialize"] = [ADD_ROOT, *config.get("initialize", [])]
    return config


def _zip(folder: Path, path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in _files(folder):
            entry = zipfile.ZipInfo(f"{folder.name}/{name}", EARLIEST)
            entry.external_attr, entry.compress_type = 0o100644 << 16, zipfile.ZIP_DEFLATED
            archive.writestr(entry, (folder / name).read_bytes())


# ------------------------------------------------------------------------------------------ what is needed


def modules_named(configs: Iterable[Mapping]) -> set[str]:
    """The modules of this package that configs name with a dotted path."""
    texts = (text for config in configs for _, text in walk(config) if isinstance(text, str))
    return {m for text in texts for m in re.findall(rf"(?<![\w.]){__package__}\.(\w+)\.\w", text)}


def module_closure(modules: Iterable[str], scripts: Iterable[Path]) -> list[str]:
    """These modules, those that the scripts import, and all that they import in turn, sorted."""
    found: set[str] = set()
    waiting = [*modules, *(module for script in scripts for module in imports_of(script)[0])]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += imports_of(PACKAGE / f"{module}.py")[0]
    return sorted(found)


def imports_of(path: Path) -> tuple[set[str], set[str]]:
    """What a Python file imports, anywhere in it: modules of this package, and the top names of all others."""
    own, others = set(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = node.module == __package__
            names = [f"{node.module}.{alias.name}" for alias in node.names] if inside else [node.module]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            if top == __package__:
                own.add(rest.split(".")[0] or "__init__")
            else:
                others.add(top)
    return own, others


def required_packages(sources: Iterable[Path], configs: Iterable[Mapping] = ()) -> dict[str, str]:
    """Package → pinned version of everything that these files import and these configs name.

    Raises ValueError for an import that ``requirements.txt`` does not pin.
    """
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    pins = dict(re.findall(r"^([a-z0-9-]+)==([\w.]+)", text, flags=re.MULTILINE))
    needed = dict.fromkeys(ALWAYS, "")
    for path in sources:
        for name in imports_of(path)[1] - sys.stdlib_module_names - NOT_PINNED:
            needed[DISTRIBUTIONS.get(name, name)] = path.name
    classes = (item.get("_target_", "") for config in configs for _, item in walk(config) if isinstance(item, Mapping))
    if any(re.search(r"tensorboard|TensorBoard", str(name)) for name in classes):
        needed["tensorboard"] = "configs"
    unknown = [f"{name} ({user})" for name, user in needed.items() if name not in pins]
    if unknown:
        raise ValueError(f"requirements.txt does not pin {', '.join(sorted(unknown))}")
    return {name: pins[name] for name in sorted(needed)}


# ------------------------------------------------------------------------------------------ publishing


def publish(path: Path, repo: str, endpoint: str | None = None) -> str:
    """Upload a verified bundle to the Hugging Face hub and tag it with its version; returns its address.

    path: a packed folder or zip. repo: 'owner/name'. endpoint: of another hub, for example a test's. The token is the
    one that ``hf auth login`` stored, or HF_TOKEN. What the manifest lists is uploaded, in place of what was there.
    Raises ValueError, one line, without the library, for a bundle that ``verify`` refuses and for a version that the
    repo has.
    """
    with opened(path, foreign_code=False) as bundle:
        if not (bundle.folder / "manifest.json").is_file():
            raise ValueError(f"{path}: promoted weights, not a bundle; pack them first (scripts/share.py pack)")
        manifest = json.loads((bundle.folder / "manifest.json").read_text(encoding="utf-8"))
        try:
            from huggingface_hub import HfApi
            from huggingface_hub.errors import HfHubHTTPError
        except ImportError:
            hint = f"pip install it, or: hf upload {repo} {path} ."
            raise ValueError(f"huggingface_hub is not installed; {hint}") from None
        api = HfApi(endpoint=endpoint)
        try:
            api.create_repo(repo, exist_ok=True)
            if bundle.record["version"] in [tag.name for tag in api.list_repo_refs(repo).tags]:
                raise ValueError(f"{repo}: has a version {bundle.record['version']}; pack it under a larger one")
            api.upload_folder(
                repo_id=repo,
                folder_path=bundle.folder,
                commit_message=f"{bundle.name} {bundle.record['version']}",
                allow_patterns=[*manifest, "manifest.json"],
                delete_patterns=["*"],
            )
            api.create_tag(repo, tag=bundle.record["version"])
        except HfHubHTTPError as error:
            raise ValueError(f"{repo}: the hub refused: {' '.join(str(error).split())[:200]}") from error
        return f"{api.endpoint}/{repo}"
