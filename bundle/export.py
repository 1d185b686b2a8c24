"""A bundle's network as files that need neither MONAI nor this project: ONNX, torch.export, TorchScript."""

from __future__ import annotations

import contextlib
import io
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from bundle.card import channel_names
from bundle.model_config import ROOT
from bundle.trust import Bundle
from bundle.volume_io import one_line, sha256, staged_folder, write_json

RUNNER = ROOT / "scripts" / "segment_onnx.py"
OPSET = 18
TOLERANCE = 1e-3  # of the largest logit: float32 in another order
CAN_SCALE = {"ScaleIntensityRangePercentilesd", "ScaleIntensityRanged"}  # what the runner does without MONAI


def export(bundle: Bundle, out: Path, torchscript: bool = False) -> list[str]:
    """Write ``model.onnx``, ``model.pt2``, a runner and ``model.json`` into a folder, each compared with the network.

    bundle: from ``bundle.trust.opened``. torchscript: also ``model.ts``, which torch has deprecated.

    All take any batch, and windows whose sides are multiples of the bundle's size_multiple (torch.export may need
    multiples of 8). A format that the network cannot take is left out, and its line says why. Returns a line for each
    file with the largest difference, on random and on real input, between its logits and the network's. Raises
    ValueError without onnx, onnxscript or onnxruntime, for grey scaling that the runner lacks, for samples of several
    images, which it does not read, or if a file gives other logits.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (torch's exporter needs it)
    except ImportError as error:
        raise ValueError(f"{error.name} is not installed: pip install onnx onnxscript onnxruntime") from error
    model = _model(bundle)
    network = bundle.network()
    with np.load(bundle.example, allow_pickle=False) as stored:
        real = torch.from_numpy(stored["image"])
    inputs = _inputs(real, bundle.record["network"]["size_multiple"])

    def onnx_runner(path: Path) -> Callable[[torch.Tensor], np.ndarray]:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return lambda x: session.run(None, {"image": x.numpy()})[0]

    def torch_runner(load: Callable) -> Callable[[Path], Callable]:
        return lambda path: (lambda loaded: lambda x: loaded(x).numpy())(load(path))

    formats = {
        "model.onnx": (_write_onnx, onnx_runner),
        "model.pt2": (_write_exported, torch_runner(lambda path: torch.export.load(path).module())),
    }
    if torchscript:
        formats["model.ts"] = (_write_torchscript, torch_runner(torch.jit.load))
    lines, model["differences"] = [], {}
    with staged_folder(out, last="model.json") as folder:
        for name, (write, runner) in formats.items():
            try:
                with _quiet():
                    write(network, real, bundle, folder / name)
                    found = _compare(network, runner(folder / name), inputs)
            except Exception as error:  # exporters raise anything for an operation they lack
                (folder / name).unlink(missing_ok=True)
                lines.append(f"{name}: not written, {type(error).__name__}: {one_line(error)[:200]}")
                continue
            model["differences"][name] = found
            worst = max(found.values())
            if not worst <= TOLERANCE:
                raise ValueError(f"{name}: its logits differ from the network's by {worst:.1e} of the largest")
            lines.append(
                f"{name}: {(folder / name).stat().st_size / 1e6:.2f} MB, largest difference of a logit "
                + ", ".join(f"{value:.0e} ({kind})" for kind, value in found.items())
                + " of the largest"
            )
        if (folder / "model.onnx").is_file():
            shutil.copyfile(RUNNER, folder / "run_onnx.py")
        model["files"] = {path.name: sha256(path) for path in sorted(folder.iterdir())}
        write_json(folder / "model.json", model)
        for name in ("model.json", "run_onnx.py", "model.onnx", "model.pt2", "model.ts"):  # of an earlier export
            (Path(out) / name).unlink(missing_ok=True)
    return lines


def _model(bundle: Bundle) -> dict:
    """What the runner needs to know, and what a reader wants to."""
    parser, record = bundle.parser(), bundle.record
    inferer, steps = parser.get_parsed_content("inferer"), bundle.config["intensity"]
    images = channel_names(record)
    if len(images) > 1:
        raise ValueError(f"the runner takes one image; this network takes {', '.join(images)}")
    for step in steps:
        if step["_target_"] not in CAN_SCALE or step.get("relative"):
            raise ValueError(f"the runner cannot scale grey values by {step['_target_']}; it can {sorted(CAN_SCALE)}")
    return {
        "name": record["name"],
        "version": record["version"],
        "classes": record["classes"],
        "spatial_dims": record["network"]["spatial_dims"],
        "size_multiple": record["network"]["size_multiple"],
        "roi_size": list(inferer.roi_size),
        "overlap": inferer.overlap,
        "mode": inferer.mode,
        "mirror": inferer.mirror,
        "neighbours": inferer.neighbours,
        "intensity": steps,
        "voxel_size_um": record["data"]["voxel_size_um"],
        "weights_sha256": sha256(bundle.weights),
        "torch": torch.__version__,
    }


def _inputs(real: torch.Tensor, multiple: int) -> dict[str, torch.Tensor]:
    """Real input, and random input of another batch and another, not square window."""
    generator = torch.Generator().manual_seed(0)
    step = max(multiple, 8)
    sides = [4 * step + k * step for k in range(real.ndim - 2)]
    random = torch.rand((3, real.shape[1], *sides), generator=generator)
    return {"random": random, "real": real}


def _compare(network: torch.nn.Module, run: Callable, inputs: dict[str, torch.Tensor]) -> dict[str, float]:
    differences = {}
    for kind, x in inputs.items():
        with torch.inference_mode():
            expected = network(x).numpy()
            found = run(x)
        if found.shape != expected.shape:
            raise ValueError(f"gives logits {found.shape} where the network gives {expected.shape}")
        differences[kind] = float(np.abs(found - expected).max() / np.abs(expected).max())
    return differences


def _sides(bundle: Bundle, multiple: int) -> dict:
    """torch.export's description of what may vary: the batch, and each side in steps of ``multiple``."""
    sides = {}
    for k in range(bundle.record["network"]["spatial_dims"]):
        steps = torch.export.Dim(f"side_{k}", min=2 if multiple > 1 else 8)
        sides[2 + k] = multiple * steps if multiple > 1 else steps
    return {0: torch.export.Dim("batch", min=1)} | sides


def _example(real: torch.Tensor) -> tuple[torch.Tensor]:
    """torch.export takes a batch of 1 for a constant."""
    return (real.repeat(2, *[1] * (real.ndim - 1)),)


def _write_onnx(network: torch.nn.Module, real: torch.Tensor, bundle: Bundle, path: Path) -> None:
    multiple = bundle.record["network"]["size_multiple"]
    names = {"input_names": ["image"], "output_names": ["logits"], "opset_version": OPSET}
    try:
        program = torch.onnx.export(
            network, _example(real), dynamo=True, dynamic_shapes=(_sides(bundle, multiple),), verbose=False, **names
        )
        program.save(str(path), external_data=False)
    except Exception:  # an operation that the newer exporter lacks, or a size that it fixes
        axes = {axis: f"side_{axis - 2}" if axis else "batch" for axis in (0, *range(2, real.ndim))}
        torch.onnx.export(
            network,
            _example(real),
            str(path),
            dynamo=False,
            dynamic_axes={"image": axes, "logits": axes},
            **names,
        )


def _write_exported(network: torch.nn.Module, real: torch.Tensor, bundle: Bundle, path: Path) -> None:
    multiple = bundle.record["network"]["size_multiple"]
    try:
        program = torch.export.export(network, _example(real), dynamic_shapes=(_sides(bundle, multiple),))
    except Exception:  # a network that cuts odd sizes cannot be described for all of them at once
        program = torch.export.export(network, _example(real), dynamic_shapes=(_sides(bundle, max(multiple, 8)),))
    torch.export.save(program, path)


def _write_torchscript(network: torch.nn.Module, real: torch.Tensor, bundle: Bundle, path: Path) -> None:
    torch.jit.script(network).save(str(path))


@contextlib.contextmanager
def _quiet():
    """Exporters print progress and warn of their own deprecations."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield
