"""Transfer learning: a network that starts from the weights of another one."""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from bundle.archive import unpack
from bundle.inference import read_weights
from bundle.model_config import checkpoint_config
from bundle.volume_io import sha256

# names of the tensors from the image to the coarsest level; what leads back up, attention included, is the decoder
ENCODERS = {
    # UNet nests its levels: 0 leads down, 1 holds the next level, 2 leads up; what is none of these is the bottom
    "UNet": r"model(\.1\.submodule)*\.(0\.|conv\.|adn\.|residual\.)",
    # AttentionUnet holds the way up of a level beside the next level
    "AttentionUnet": r"model\.0\.|model(\.1\.submodule)+\.(0\.|conv\.)",
    "BasicUNet": r"conv_0\.|down_\d+\.",
    "DynUNet": r"input_block\.|downsamples\.|bottleneck\.",
    "SegResNet": r"convInit\.|down_layers\.",
    "LRCSNet": r"encoder\.|bottom\.",
}
_CONVOLUTIONS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)


def start_network(
    network: torch.nn.Module,
    device: torch.device | str,
    channels_last: bool = False,
    path: str | os.PathLike | None = None,
    part: str = "all",
    freeze: bool = False,
    average_inputs: bool = True,
    class_names: Sequence[str] = (),
) -> torch.nn.Module:
    """A network ready to be trained: weights of another one taken up, on its device, in its memory format.

    Args:
        network: freshly made, changed in place.
        device: where it goes.
        channels_last: keep its weights, and so its feature maps, with the channels as the fastest axis.
        path: weights to start from, None for none, as in ``take_weights``.
        part, freeze, average_inputs, class_names: as in ``take_weights``.

    Raises:
        FileNotFoundError, ValueError: as in ``take_weights``; a part or ``freeze`` without a path.
    """
    if path is not None:
        take_weights(network, path, part, freeze, average_inputs, class_names)
    elif freeze or part != "all":
        asked = "freeze needs weights to keep" if freeze else f"pretrained_part {part!r} needs weights"
        raise ValueError(f"{asked}: give pretrained, or leave freeze false and pretrained_part 'all'")
    formats = {4: torch.channels_last, 5: torch.channels_last_3d} if channels_last else {}
    network.to(device)
    for parameter in network.parameters():
        if parameter.ndim in formats:
            parameter.data = parameter.data.contiguous(memory_format=formats[parameter.ndim])
    return network


def take_weights(
    network: torch.nn.Module,
    path: str | os.PathLike,
    part: str = "all",
    freeze: bool = False,
    average_inputs: bool = True,
    class_names: Sequence[str] = (),
) -> list[str]:
    """Take up every layer of a file whose weights have the names and shapes of the network's.

    Other layers (another number of phases, another width) stay as they are, newly made; they are named in the log.

    Args:
        network: changed in place.
        path: a flat state dict, a training checkpoint, a packed bundle (zip or folder), or a folder with ``model.pt``,
            as in ``models/``.
        part: 'all', or 'encoder' for the way from the image to the coarsest level (the networks in ``ENCODERS``).
        freeze: train only what is new: what was taken up keeps its values, running statistics of its norms included.
        average_inputs: where only the number of image channels differs, share the old channels' kernels out, scaled so
            that equal channels are seen as before (the inflation of Carreira and Zisserman, CVPR 2017,
            arXiv 1705.07750): each to its slices where a slice gets neighbours, summed where it loses them, else their
            mean to all; otherwise such a layer is new, too. It is trained even with ``freeze``.
        class_names: of the network; weights that say theirs, by the record beside them, must not have the same name
            at another number.

    Returns:
        the names of the tensors that stayed new, of the chosen part.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another ``part``, a network whose encoder is unknown, a file without weights or with none that
            fit, classes in another order, nothing left to train.
    """
    with _unpacked(Path(path)) as file:
        source = read_weights(file)
        if part == "all":
            _check_order(path, _class_names(file), list(class_names))
    target = network.state_dict()
    chosen = _chosen(network, target, part)
    modules = dict(network.named_modules(remove_duplicate=False))
    taken, averaged, new = {}, {}, []
    for layer, names in _layers(chosen).items():
        old = {k: source[k] for k in names if k in source}
        if all(k in old and old[k].shape == target[k].shape for k in names):
            taken |= old
        elif average_inputs and isinstance(modules[layer], _CONVOLUTIONS) and _same_but_inputs(old, target, names):
            averaged |= {k: _averaged(old[k], target[k]) for k in names}
        else:
            new += names
    if not any(target[k].ndim > 1 for k in taken):
        raise ValueError(
            f"{path}: none of its weights fit this {type(network).__name__}'s {part}; the network has "
            f"{_example(target, chosen)}, the file {_example(source, source)}"
        )
    network.load_state_dict(taken | averaged, strict=False)
    if freeze:
        _freeze(network, set(taken))
    log = logging.getLogger("transfer")
    log.info(f"{path}: {len(taken)} of {len(target)} tensors taken up{' and frozen' if freeze else ''}")
    if averaged:
        log.info(f"averaged over other image channels: {', '.join(averaged)}")
    if new:
        log.info(f"new, since the file has no such layer: {', '.join(new)}")
    return new


def origin(path: str | os.PathLike | None) -> str | None:
    """What weights were, for a record: name and version of a bundle, or the file's name, and their sha256."""
    if path is None:
        return None
    with _unpacked(Path(path)) as file:
        record, digest = _record(file), sha256(file)[:16]
        name = f"{record['name']} {record['version']}" if record else Path(path).name
        return f"{name} (sha256 {digest}…)"


@contextmanager
def _unpacked(path: Path) -> Iterator[Path]:
    """The file of the weights, in a scratch folder where it is in a zip."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = path
        if path.suffix == ".zip":
            try:
                folder = unpack(path, Path(scratch))
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
        packed = folder / "models" / "model.pt"
        if folder.is_dir():
            yield packed if packed.is_file() else folder / "model.pt"
        else:
            yield path


def _record(file: Path) -> dict | None:
    """The record of promoted weights, beside them or in a packed bundle."""
    for path in (file.parent / "record.json", file.parent.parent / "docs" / "record.json"):
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
    return None


def _class_names(file: Path) -> list[str] | None:
    """The classes of weights in their order, None where nothing beside them says it."""
    if record := _record(file):
        return record["classes"]
    try:
        config = checkpoint_config(file)
    except ValueError:  # a run whose data set is gone
        return None
    return None if config is None else config["class_names"]


def _check_order(path: str | os.PathLike, before: Sequence[str] | None, now: Sequence[str]) -> None:
    """Raise ValueError where an output layer would be taken up whose classes stand in another order."""
    if before is None or len(before) != len(now):
        return
    moved = [name for name in now if name in before and before.index(name) != now.index(name)]
    if moved:
        raise ValueError(
            f"{path} counts the classes as {list(before)}, the data set as {list(now)}; number its labels alike "
            "(make_datalist.py --map), or take pretrained_part encoder"
        )


def _chosen(network: torch.nn.Module, target: Mapping[str, torch.Tensor], part: str) -> list[str]:
    """Names of the tensors of a part of a network."""
    if part == "all":
        return list(target)
    if part != "encoder":
        raise ValueError(f"pretrained_part {part!r} must be 'all' or 'encoder'")
    name = type(network).__name__
    if name not in ENCODERS:
        raise ValueError(
            f"the encoder of a {name} is not known, only of {', '.join(ENCODERS)}; take pretrained_part all"
        )
    return [k for k in target if re.match(ENCODERS[name], k)]


def _layers(names: list[str]) -> dict[str, list[str]]:
    """The tensors of each layer, by the layer's name."""
    layers: dict[str, list[str]] = {}
    for name in names:
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    return layers


def _same_but_inputs(old: Mapping[str, torch.Tensor], new: Mapping[str, torch.Tensor], names: list[str]) -> bool:
    """Whether the tensors of a convolution, kernels (out, in, …) and bias (out), differ in the inputs at most."""

    def outputs(tensor: torch.Tensor) -> tuple:
        return tensor.shape[0], *tensor.shape[2:]

    return all(k in old and old[k].ndim == new[k].ndim and outputs(old[k]) == outputs(new[k]) for k in names)


def _averaged(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """Kernels (out, in, …) for another number of inputs; a bias as it is."""
    if old.ndim == 1:
        return old
    before, now = old.shape[1], new.shape[1]
    if now % before == 0:  # each image gets neighbours, which lie beside it
        return old.repeat_interleave(now // before, 1) * (before / now)
    if before % now == 0:
        return old.unflatten(1, (now, before // now)).sum(2)
    return (old.sum(1, keepdim=True) / now).expand_as(new)


def _example(state: Mapping[str, torch.Tensor], names) -> str:
    name = next((k for k in names if state[k].ndim > 1), None)
    return "no kernels" if name is None else f"{name} {tuple(state[name].shape)} and so on"


def _freeze(network: torch.nn.Module, names: set[str]) -> None:
    """Keep tensors as they are in training: parameters without a gradient, norms with their running statistics."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in names)
    if not any(p.requires_grad for p in network.parameters()):
        raise ValueError(
            "freeze leaves nothing to train: every weight fits; take pretrained_part encoder, or no freeze"
        )
    for name, module in network.named_modules():
        if f"{name}.running_mean" in names:
            module.register_forward_pre_hook(_evaluate)


def _evaluate(module: torch.nn.Module, inputs: tuple) -> None:
    module.eval()  # the trainer sets the whole network to training before every step
