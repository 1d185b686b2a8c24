"""What a MONAI config from elsewhere may do: every expression, import and class name against an allow-list.

MONAI evaluates each string that begins with '$', imports what '$import' names, and calls whatever ``_target_`` says, so
a config is a program. The list holds what the configs of this project use and their like; nothing here is executed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from monai.bundle import ComponentLocator, ReferenceResolver

from bundle.model_config import walk

IMPORTS = {"glob", "monai", "numpy", "os", "sys", "torch"}
BUILTINS = {
    "abs", "all", "any", "bool", "dict", "enumerate", "float", "int", "isinstance", "len", "list", "max", "min",
    "print", "range", "reversed", "round", "set", "sorted", "str", "sum", "tuple", "type", "zip",
}  # fmt: skip
FUNCTIONS = {
    "glob.glob", "monai.handlers.from_engine", "monai.utils.set_determinism", "os.path.abspath", "os.path.basename",
    "os.path.dirname", "os.path.exists", "os.path.join", "torch.cuda.is_available", "torch.cuda.device_count",
    "torch.device", "torch.bfloat16", "torch.float16", "torch.float32", "torch.float64", "torch.int64", "torch.uint8",
    "torch.tensor",
}  # fmt: skip
METHODS = {
    "cpu", "endswith", "eval", "items", "join", "keys", "named_parameters", "network", "numel", "parameters", "run",
    "shape", "startswith", "state", "to", "train", "values",
}  # fmt: skip
# the one use of sys: what MONAI itself does when a bundle runs, done when it is loaded
ADD_ROOT = ast.dump(ast.parse("sys.path.append(os.path.abspath(__local_refs['bundle_root']))", mode="eval").body)
NODES = (
    ast.Expression, ast.Constant, ast.Name, ast.Load, ast.Store, ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div,
    ast.FloorDiv, ast.Mod, ast.UnaryOp, ast.USub, ast.UAdd, ast.Not, ast.BoolOp, ast.And, ast.Or, ast.Compare, ast.Eq,
    ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Is, ast.IsNot, ast.In, ast.NotIn, ast.IfExp, ast.List, ast.Tuple,
    ast.Dict, ast.Set, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.comprehension, ast.Call,
    ast.keyword, ast.Attribute, ast.Subscript, ast.Slice, ast.Lambda, ast.arguments, ast.arg,
)  # fmt: skip

NETWORKS = {
    "AttentionUnet", "BasicUNet", "DynUNet", "PatchDiscriminator", "SegResNet", "SegResNetDS", "SwinUNETR", "UNETR",
    "UNet", "VNet",
}  # fmt: skip
# Classes that build nothing but what they are named after. Whole modules would let in what unpickles (NumpyReader,
# PersistentDataset, torch's datapipes), fetches weights (EfficientNetBN, PerceptualLoss) or calls what it is told to
# (Lambdad, TorchVisiond).
COMPONENTS = NETWORKS | {
    # losses and optimisers
    "BCEWithLogitsLoss", "CrossEntropyLoss", "DiceCELoss", "DiceFocalLoss", "DiceLoss", "FocalLoss",
    "GeneralizedDiceLoss", "L1Loss", "MSELoss", "PatchAdversarialLoss", "TverskyLoss", "Adam", "AdamW", "SGD",
    "ConstantLR", "CosineAnnealingLR", "ExponentialLR", "LinearLR", "OneCycleLR", "PolynomialLR", "StepLR",
    "WarmupCosineSchedule",
    # data
    "CacheDataset", "DataLoader", "Dataset", "DistributedSampler", "RandomSampler",
    # transforms
    "Activationsd", "AsDiscreted", "BorderPadd", "CenterSpatialCropd", "Compose", "CopyItemsd", "CropForegroundd",
    "DivisiblePadd", "EnsureChannelFirstd", "EnsureTyped", "FillHolesd", "GaussianSmoothd", "Identityd", "Invertd",
    "KeepLargestConnectedComponentd", "LoadImaged", "MedianSmoothd", "NormalizeIntensityd", "OneOf", "Orientationd",
    "RemoveSmallObjectsd", "Resized", "SaveImaged", "ScaleIntensityRangePercentilesd", "ScaleIntensityRanged",
    "ScaleIntensityd", "SomeOf", "Spacingd", "SpatialPadd", "SqueezeDimd",
    "Rand2DElasticd", "Rand3DElasticd", "RandAdjustContrastd", "RandAffined", "RandAxisFlipd", "RandBiasFieldd",
    "RandCoarseDropoutd", "RandCropByLabelClassesd", "RandCropByPosNegLabeld", "RandFlipd", "RandGaussianNoised",
    "RandGaussianSharpend", "RandGaussianSmoothd", "RandGibbsNoised", "RandGridDistortiond", "RandHistogramShiftd",
    "RandKSpaceSpikeNoised", "RandRicianNoised", "RandRotate90d", "RandRotated", "RandScaleIntensityd",
    "RandShiftIntensityd", "RandSimulateLowResolutiond", "RandSpatialCropSamplesd", "RandSpatialCropd",
    "RandStdShiftIntensityd", "RandZoomd",
    # engines, handlers, inferers
    "CheckpointLoader", "ConfusionMatrix", "HausdorffDistance", "IgniteMetricHandler", "LrScheduleHandler", "MeanDice",
    "MeanIoUHandler", "SimpleInferer", "SlidingWindowInferer", "StatsHandler", "SummaryWriter", "SupervisedEvaluator",
    "SupervisedTrainer", "SurfaceDistance", "TensorBoardStatsHandler", "ValidationHandler",
}  # fmt: skip
PLACES = (
    "monai.networks.nets", "monai.losses", "monai.transforms", "monai.inferers", "monai.engines", "monai.handlers",
    "monai.metrics", "monai.optimizers", "monai.data", "torch.optim", "torch.optim.lr_scheduler", "torch.nn",
    "torch.utils.data", "torch.utils.tensorboard",
)  # fmt: skip
REFUSED_ARGUMENTS = {"allow_pickle", "weights_only", "pickle_module"}
FOLDERS = ("bundle_root", "dataset_dir", "output_dir")  # keys that paths in expressions may begin with
# modules of this project that no config needs to name; they write files or load code
NOT_FOR_CONFIGS = {
    "archive",
    "card",
    "export",
    "model_config",
    "package",
    "record",
    "safe_config",
    "trust",
    "volume_io",
}
_REFS = "__local_refs"
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_FILE = re.compile(r"[\w/-]+\.(json|pt|png|csv|md|npz|txt|nii|tif|tiff)")


def problems(config: Any, package: str, folder: Path) -> list[str]:
    """Everything in a config that the allow-list does not hold, one line each; empty if it is safe to evaluate.

    config: plain JSON values. package: the name of the bundle's own package. folder: where its Python files are; they
    are read, not imported.
    """
    own = OwnPackage(package, folder)
    found = _folders_outside(config) if isinstance(config, Mapping) else []
    for where, value in walk(config):
        try:
            if isinstance(value, Mapping):
                _check_keys(value)
            elif isinstance(value, str):
                _check_text(value, where.split("#"), own)
        except ValueError as error:
            found.append(f"{where}: {error}")
    return found


@dataclass
class OwnPackage:
    """The package that belongs to a config. name: as the config calls it. folder: its Python files."""

    name: str
    folder: Path
    _defined: dict[str, set[str]] = field(default_factory=dict)

    def defines(self, module: str, member: str) -> bool:
        """Whether a module defines this public class or function itself."""
        path = self.folder / f"{module}.py"
        if not module.isidentifier() or member.startswith("_") or not path.is_file():
            return False
        if module not in self._defined:
            body = ast.parse(path.read_text(encoding="utf-8"), path.name).body
            self._defined[module] = {node.name for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
        return member in self._defined[module]


def _folders_outside(config: Mapping) -> list[str]:
    """Folders that do not begin with the bundle's own."""
    inside = re.compile(rf"\$@({'|'.join(FOLDERS)}) \+ '/[\w/-]+'")
    values = [(key, config.get(key, "")) for key in FOLDERS]
    return [
        f"{key}: {value!r} must be {'.' if key == FOLDERS[0] else '$@bundle_root + a path'!r}"
        for key, value in values
        if key in config and not (inside.fullmatch(str(value)) if key != FOLDERS[0] else value == ".")
    ]


def _check_keys(item: Mapping) -> None:
    if item.get("_mode_", "default") != "default":
        raise ValueError(f"_mode_ {item['_mode_']!r} must be 'default'")
    if found := REFUSED_ARGUMENTS & set(item):
        raise ValueError(f"{min(found)} decides whether a file may run code")
    if "_target_" in item and not isinstance(item["_target_"], str):
        raise ValueError(f"_target_ {item['_target_']!r} must be the name of a class")
    for key, value in item.items():
        if "_target_" in item and re.search(r"pretrained|_url$|^url$", str(key)) and value not in (None, False):
            raise ValueError(f"{key} = {value!r} would fetch weights from elsewhere")


def _check_text(text: str, keys: Sequence[str], own: OwnPackage) -> None:
    if text.startswith("%"):
        raise ValueError(f"{text!r} reads another file")
    if "@#" in text or "@::" in text:
        raise ValueError(f"{text!r} is a relative reference")
    if re.match(r"/|~|\\|[A-Za-z]:", text) or ".." in re.split(r"[/\\]", text):
        raise ValueError(f"{text!r} names a path outside the bundle")
    if keys[-1] == "_target_":
        _check_component(text, own)
    elif not {"reader", "writer"}.isdisjoint(keys[-2:]):  # MONAI imports what they name
        for name in _chosen_names(text):
            _check_component(name, own)
    elif _is_path_of_code(text):
        _check_component(text, own)
    if text.startswith("$"):
        _check_expression(text, own)


def _chosen_names(text: str) -> list[str]:
    """The names that a reader's or writer's value can be: itself, or what an expression chooses from."""
    if not text.startswith(("$", "@")):
        return [text]
    refs = ReferenceResolver.match_refs_pattern(text)
    try:
        waiting = [ast.parse(ReferenceResolver.update_refs_pattern(text, refs)[1:], mode="eval").body]
    except (SyntaxError, TypeError, KeyError):
        raise ValueError(f"{text!r} is no choice between names") from None
    names = []
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.IfExp):
            waiting += [node.body, node.orelse]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.append(node.value)
        else:
            raise ValueError(f"{text!r} is no choice between names")
    return names


def _is_path_of_code(text: str) -> bool:
    return bool(_DOTTED.fullmatch(text)) and not _FILE.fullmatch(text)


def _check_component(name: str, own: OwnPackage) -> None:
    """A class that MONAI would find under this name and that is on the list."""
    module, _, member = name.rpartition(".")
    if module.startswith(own.name + "."):
        module = module.removeprefix(own.name + ".")
        if module not in NOT_FOR_CONFIGS and own.defines(module, member):
            return
        raise ValueError(f"{name!r} is no class or function of this project that a config may name")
    if not module and member in COMPONENTS:  # as MONAI finds it
        modules = _locator().get_component_module_name(name)
        found = modules[0] if isinstance(modules, list) else modules or ""
        module = next((place for place in PLACES if found == place or found.startswith(place + ".")), "")
    if module not in PLACES or member not in COMPONENTS:
        raise ValueError(f"{name!r} is not on the list of classes that a config may name")


@cache
def _locator() -> ComponentLocator:
    return ComponentLocator()


def _check_expression(text: str, own: OwnPackage) -> None:
    """An import or an expression, in the form that MONAI evaluates: with references put in."""
    refs = ReferenceResolver.match_refs_pattern(text)
    source = ReferenceResolver.update_refs_pattern(text, refs)[1:]
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{text!r} is no Python expression") from error
    if body and isinstance(body[0], ast.Import | ast.ImportFrom):
        named = [alias.name for alias in body[0].names] if isinstance(body[0], ast.Import) else ["from"]
        if len(body) > 1 or not set(named) <= IMPORTS or any(alias.asname for alias in body[0].names):
            raise ValueError(f"{text!r}: only {', '.join(sorted(IMPORTS))} may be imported")
        return
    if len(body) != 1 or not isinstance(body[0], ast.Expr):
        raise ValueError(f"{text!r} is no single expression")
    expression = body[0].value
    if ast.dump(expression) != ADD_ROOT:
        problem = _problem(expression, frozenset({_REFS}), own)
        if problem:
            raise ValueError(f"{text!r}: {problem}")


def _problem(node: ast.AST, names: Set[str], own: OwnPackage) -> str | None:
    """What is not on the list in this part of an expression; ``names`` are those that it binds itself."""
    if not isinstance(node, NODES):
        return f"{type(node).__name__} is not allowed"
    if isinstance(node, ast.Name):
        return None if node.id in names or node.id in BUILTINS else f"the name {node.id} is not allowed"
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        if re.match(r"/|~|\\|[A-Za-z]:", node.value) or re.search(r"(^|[/\\])\.+([/\\]|$)", node.value):
            return f"{node.value!r} may lead to a path outside the bundle"
        try:
            return _check_component(node.value, own) if _is_path_of_code(node.value) else None
        except ValueError as error:
            return str(error)
    if inside := _path_inside(node):  # '/x' behind a folder of the bundle is no absolute path
        return _problem(ast.Constant(inside), names, own)
    if isinstance(node, ast.Attribute):
        path = _path(node)
        if path and path.split(".")[0] not in names:
            return None if path in FUNCTIONS else f"{path} is not allowed"
        of_type = isinstance(node.value, ast.Call) and _path(node.value.func) == "type" and len(node.value.args) == 1
        if node.attr not in METHODS and not (node.attr == "__name__" and of_type):
            return f"the attribute {node.attr} is not allowed"
    if isinstance(node, ast.Call):
        if not (isinstance(node.func, ast.Attribute) or _path(node.func) in BUILTINS):
            return "only functions and methods by their names may be called"
        if _path(node.func) == "type" and len(node.args) != 1:
            return "type may only ask for a type"
        if found := REFUSED_ARGUMENTS & {keyword.arg for keyword in node.keywords}:
            return f"{min(found)} decides whether a file may run code"
    if isinstance(node, ast.Lambda):
        names = names | {argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg)}
    if isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
        bound = [name.id for part in node.generators for name in ast.walk(part.target) if isinstance(name, ast.Name)]
        names = names | set(bound)
    if names & (BUILTINS | IMPORTS):
        return "a built-in name is bound anew"
    parts = [part for part in ast.iter_child_nodes(node) if not _only_compared(node, part)]
    return next(filter(None, (_problem(part, names, own) for part in parts)), None)


def _only_compared(node: ast.AST, part: ast.AST) -> bool:
    """Whether a constant only takes part in a comparison, which gives True or False."""
    return isinstance(node, ast.Compare) and isinstance(part, ast.Constant)


def _path_inside(node: ast.AST) -> str:
    """'x/y' of ``@bundle_root + '/x/y'`` and its like, else ''."""
    if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add) and isinstance(node.right, ast.Constant)):
        return ""
    folders = {ast.dump(ast.parse(f"{_REFS}[{name!r}]", mode="eval").body) for name in FOLDERS}
    text = node.right.value
    inside = ast.dump(node.left) in folders and isinstance(text, str) and text.startswith("/")
    return text.removeprefix("/") if inside else ""


def _path(node: ast.AST) -> str:
    """'torch.cuda.is_available' for a chain of attributes on a name, else ''."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        start = _path(node.value)
        return f"{start}.{node.attr}" if start else ""
    return ""
