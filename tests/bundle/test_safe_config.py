"""The project's own configs are on the allow-list; what could run code is not, and is not run to find out."""

import json
from pathlib import Path

import pytest

from bundle.safe_config import problems

ROOT = Path(__file__).resolve().parents[2]
# recipes and scanners make data, and several processes are started by who trains: none of them travels in a bundle
NOT_SHARED = ("generate_", "scanner_", "metadata", "multi_gpu")
CONFIGS = sorted(path for path in (ROOT / "configs").glob("*.json") if not path.name.startswith(NOT_SHARED))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_own_configs_are_allowed(path):
    assert problems(json.loads(path.read_text()), "bundle", ROOT / "bundle") == []


@pytest.mark.parametrize(
    "text",
    [
        "$__import__('os').system('x')",
        "$import subprocess",
        "$import os, subprocess",
        "$import os; import subprocess",
        "$from os import system",
        "$import subprocess as os",
        "$().__class__.__base__.__subclasses__()",
        "$torch.load('x')",
        "$torch.hub.load('a', 'b')",
        "$os.system('x')",
        "$os",
        "$os.environ",
        "$monai.utils.optional_import('os')",
        "$monai.bundle.run",
        "$print.__self__",
        "$type(@a).__mro__",
        "$type('A', (), {})",
        "$'{0.__class__}'.format(@a)",
        "$f'{@a}'",
        "$2 ** 10 ** 9",
        "$[x for os in [1] for x in os.system]",
        "$(lambda glob: glob.glob)('a')",
        "$(lambda: [b for b in ().__class__.__bases__])()",
        "$(a := 1)",
        "$eval('1')",
        "$open('x')",
        "$getattr(@a, 'b')",
        "$'bundle.inference.os.system'",
        "$sys.path.append('/tmp')",
        "$sys.path.insert(0, os.path.abspath(@bundle_root))",
        "$sys.modules",
        "$torch.cuda.is_available.__globals__",
        "$@network.__init__.__globals__",
        "$'@or __import__'.x",
        "$await x",
        "$1 if",
        "%/etc/passwd.json::a",
        "/etc/passwd",
        "~/x",
        "../../x",
        "C:\\x",
        "os.system",
        "@##a",
        "$'/home/user'",
        "$@bundle_root + '/.' + './x'",
        "$@bundle_root + '/../x'",
        "$@name + '/home/user'",
        "$@bundle_root + '//home'",
        "$@loader('example.npz', allow_pickle=True)",
        "$@loader('example.npz')",
        "$(lambda f: f('x'))(@loader)",
        "$type(@loader)('x')",
        "$'.a.'.replace('a', '')",
    ],
)
def test_expression_is_refused(text):
    assert len(problems({"key": [text]}, "bundle", ROOT / "bundle")) == 1


@pytest.mark.parametrize(
    "item",
    [
        {"_target_": "os.system", "command": "x"},
        {"_target_": "antigravity"},
        {"_target_": "$os.system"},
        {"_target_": {}},
        {"_target_": "UNet", "_mode_": "debug"},
        {"_target_": "UNet", "_mode_": "callable"},
        {"_target_": "LoadImaged", "keys": "image", "allow_pickle": True},
        {"_target_": "LoadImaged", "keys": "image", "reader": "NumpyReader"},
        {"_target_": "NumpyReader"},
        {"_target_": "LoadImage"},
        {"_target_": "PersistentDataset", "data": []},
        {"_target_": "torch.utils.data.datapipes.iter.RoutedDecoder"},
        {"_target_": "PerceptualLoss"},
        {"_target_": "EfficientNetBN"},
        {"_target_": "ResNetFeatures"},
        {"_target_": "torch.nn.parallel.DistributedDataParallel"},
        {"_target_": "torch.optim.swa_utils.AveragedModel"},
        {"_target_": "Lambda", "func": None},
        {"_target_": "monai.bundle.run"},
        {"_target_": "monai.transforms.os.system"},
        {"_target_": "torch.load"},
        {"_target_": "monai.transforms.io.array.Path"},
        {"_target_": "bundle.inference.os.system"},
        {"_target_": "bundle.inference.Compose"},
        {"_target_": "bundle.volume_io.write_json"},
        {"_target_": "bundle.nothing.Nothing"},
        {"_target_": "bundle.inference._autocast"},
        {"_target_": "bundle.../evil.Evil"},
        {"_target_": "otherbundle.inference.VolumeInferer"},
        {"_target_": "UNet", "pretrained": True},
        {"_target_": "LoadImaged", "keys": "image", "reader": "os.system"},
        {"_target_": "LoadImaged", "keys": "image", "reader": "antigravity"},
        {"_target_": "LoadImaged", "keys": "image", "reader": ["os.system"]},
        {"_target_": "LoadImaged", "keys": "image", "reader": ["antigravity"]},
        {"_target_": "LoadImaged", "keys": "image", "reader": "@name"},
        {"_target_": "LoadImaged", "keys": "image", "reader": "$'antigravity' if @a else 'PILReader'"},
        {"_target_": "LoadImaged", "keys": "image", "reader": "$@name"},
        {"_target_": "SaveImaged", "keys": "image", "writer": "os.system"},
    ],
)
def test_component_is_refused(item):
    assert len(problems({"a": {"b": item}}, "bundle", ROOT / "bundle")) == 1


@pytest.mark.parametrize(
    "text",
    [
        "$len(@class_names)",
        "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "$[{'image': p} for p in sorted(glob.glob(os.path.join(@dataset_dir, @file_pattern)))]",
        "$'bundle.monai_io.TiffWriter' if @output_ext.startswith('.tif') else 'bundle.monai_io.NiftiWriter'",
        "$lambda output: {k: v for k, v in output[0].items() if '/' in k}",
        "$sys.path.append(os.path.abspath(@bundle_root))",
        "$@bundle_root + '/models/model.pt'",
        "model.pt",
        ".nii.gz",
        "carbon binder",
    ],
)
def test_what_configs_need_is_allowed(text):
    assert problems({"key": text}, "bundle", ROOT / "bundle") == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bundle_root", "/"),
        ("bundle_root", ""),
        ("output_dir", "elsewhere"),
        ("dataset_dir", "$@name + '/x'"),
        ("output_dir", ""),
    ],
)
def test_folders_are_the_bundles_own(key, value):
    assert any(text.startswith(key) for text in problems({key: value}, "bundle", ROOT / "bundle"))


def test_place_is_named():
    found = problems(
        {"train": {"handlers": [{"_target_": "UNet"}, {"_target_": "os.system"}]}}, "bundle", ROOT / "bundle"
    )
    assert found == ["train#handlers#1#_target_: 'os.system' is not on the list of classes that a config may name"]
