"""Small data that several tests share."""

import logging
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure(config):
    import torch

    torch.set_num_threads(1)  # tiny tensors: a second thread only waits


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository, which is the bundle root."""
    return ROOT


@pytest.fixture(scope="session")
def bundle_run():
    """Run configs of this bundle in this process: ``bundle_run(["train.json", …], output_dir=…, …)``."""

    def run(names: list[str], kind: str = "train", **overrides):
        from monai.bundle import ConfigWorkflow

        flow = ConfigWorkflow(
            config_file=[str(ROOT / "configs" / name) for name in names],
            meta_file=str(ROOT / "configs/metadata.json"),
            logging_file=str(ROOT / "configs/logging.conf"),
            workflow_type=kind,
            bundle_root=str(ROOT),
            **overrides,
        )
        flow.initialize()
        flow.run()
        flow.finalize()
        return flow

    return run


@pytest.fixture
def run_script(monkeypatch, capsys):
    """Run a script in this process (MONAI takes seconds to import); gives exit code, stdout, stderr."""

    def call(script: Path, *arguments):
        monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
        monkeypatch.setattr(sys, "path", list(sys.path))
        try:
            with pytest.raises(SystemExit) as caught:
                runpy.run_path(str(script), run_name="__main__")
        finally:
            logging.disable(logging.NOTSET)
        output = capsys.readouterr()
        return caught.value.code, output.out, output.err

    return call


def make_dataset(folder: Path, shape: list[int], count: int) -> Path:
    """A generated data set of small samples, scanned with one energy to be quick."""
    from data_gen.dataset import SyntheticDataset
    from data_gen.geometry import ParallelBeam
    from data_gen.microstructure import Spheres
    from data_gen.scan import Scanner
    from data_gen.spectrum import Monochromatic

    dataset = SyntheticDataset(
        name="tiny",
        phases={"pore": "air", "particle": "NMC532"},
        microstructure=Spheres(fraction=0.4, mean_radius_um=3.0, radius_cv=0.2),
        scanner=Scanner(source=Monochromatic(30.0), geometry=ParallelBeam(60)),
        shape=shape,
        voxel_size_um=0.5,
        supersample=3,
        split=[0.5, 0.25, 0.25],
    )
    dataset.generate(folder, count=count)
    return folder


@pytest.fixture(scope="session")
def flat_dataset(tmp_path_factory) -> Path:
    """8 pairs of 48 x 64 pixels: 4 to train, 2 to validate, 2 to test."""
    return make_dataset(tmp_path_factory.mktemp("flat") / "data", [48, 64], 8)


@pytest.fixture(scope="session")
def solid_dataset(tmp_path_factory) -> Path:
    """4 pairs of 28 x 32 x 24 voxels: 2, 1, 1."""
    return make_dataset(tmp_path_factory.mktemp("solid") / "data", [32, 28, 24], 4)
