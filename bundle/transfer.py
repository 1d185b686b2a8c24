"""Transfer learning: a network that starts from the weights of another one."""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from bundle.archive import unpack
from bundle.inference import read_weights

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
) -> torch.nn.Module:
    """A network ready to be trained: weights of another one taken up, on its device, in its memory format.

    Args:
        network: freshly made, changed in place.
        device: where it goes.
        channels_last: keep its weights, and so its feature maps, with the channels as the fastest axis.
        path: weights to start from, None for none, as in ``take_weights``.
        part, freeze, average_inputs: as in ``take_weights``.

    Raises:
        FileNotFoundError, ValueError: as in ``take_weights``; ``freeze`` without a path; nothing left to train.
    """
    if path is not None:
        take_weights(network, path, part, freeze, average_inputs)
    elif freeze:
        raise ValueError("freeze needs weights to keep: give pretrained, or leave freeze false")
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
) -> list[str]:
    """Take up every layer of a file whose weights have the names and shapes of the network's.

    Other layers (another number of phases, another width) stay as they are, newly made; they are named in the log.

    Args:
        network: changed in place.
        path: a flat state dict, a training checkpoint, a packed bundle (zip or folder), or a folder with ``model.pt``,
            as in ``models/``.
        part: 'all', or 'encoder' for the way from the image to the coarsest level (the networks in ``ENCODERS``).
        freeze: train only what is new: what was taken up keeps its values, running statistics of its norms included.
        average_inputs: where only the number of image channels differs, give each channel the mean of the old
            channels' kernels, scaled so that equal channels are seen as before (the inflation of Carreira and
            Zisserman, CVPR 2017, arXiv 1705.07750); otherwise such a layer is new, too. It is trained even with
            ``freeze``.

    Returns:
        the names of the tensors that stayed new, of the chosen part.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another ``part``, a network whose encoder is unknown, a file without weights or with none that
            fit, nothing left to train.
    """
    source = _source(Path(path))
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


def _source(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file, a folder or a packed bundle."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = path
        if path.suffix == ".zip":
            try:
                folder = unpack(path, Path(scratch))
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
        packed = folder / "models" / "model.pt"
        if folder.is_dir():
            return read_weights(packed if packed.is_file() else folder / "model.pt")
        return read_weights(path)


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
    return old if old.ndim == 1 else (old.sum(1, keepdim=True) / new.shape[1]).expand_as(new)


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
