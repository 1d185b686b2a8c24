"""Oracles: straight, stair-shaped and layered channels, a dense solver, and taufactor where it is installed."""

import math

import numpy as np
import pytest

from bundle.transport import Tortuosity, tortuosity_factor


def staircase(steps, width=1):
    """A path one voxel wide that goes `width` along x, then `width` along y, and so on, and ends along x."""
    n = steps * width + 1
    phase = np.zeros((n + 1, n), bool)
    x = y = 0
    phase[0, 0] = True
    for _ in range(steps):
        phase[x : x + width + 1, y] = True
        x += width
        phase[x, y : y + width + 1] = True
        y += width
    phase[n, y] = True
    return phase, int(phase.sum())


def dense(phase, size):
    """Relative diffusivity along the first axis by a dense solution of the same equations."""
    cells = {tuple(c): i for i, c in enumerate(np.argwhere(phase))}
    matrix, known = np.zeros((len(cells), len(cells))), np.zeros(len(cells))
    for c, i in cells.items():
        for axis, h in enumerate(size):
            for step in (-1, 1):
                other = tuple(v + step * (k == axis) for k, v in enumerate(c))
                g = 1 / h**2
                if axis == 0 and not 0 <= other[0] < phase.shape[0]:
                    matrix[i, i] += 2 * g
                    known[i] += 2 * g * (other[0] < 0)
                elif other in cells:
                    matrix[i, i] += g
                    matrix[i, cells[other]] -= g
    field = np.linalg.lstsq(matrix, known, rcond=None)[0]
    flux = sum(2 * (1 - field[i]) for c, i in cells.items() if c[0] == 0)
    return flux * phase.shape[0] ** 2 / phase.size


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("size", [1.0, (0.5, 1.0, 2.0)])
def test_straight_channels_have_tortuosity_1(axis, size):
    phase = np.zeros((14, 10, 12), bool)
    phase[:, 2:4, 3:9] = True
    phase[:, 6:9, 1] = True
    phase = np.moveaxis(phase, 0, axis)
    found = tortuosity_factor(phase, size, axis)
    assert found.tortuosity_factor == pytest.approx(1, abs=1e-6)
    assert found.relative_diffusivity == pytest.approx(phase.mean()) and found.converged
    assert found.percolating_fraction == found.fraction == phase.mean()
    across = tortuosity_factor(phase, size, (axis + 1) % 3)
    assert math.isinf(across.tortuosity_factor) and across.relative_diffusivity == 0
    assert across.as_json()["tortuosity_factor"] is None and across.solver is None


@pytest.mark.parametrize(("steps", "width"), [(4, 1), (5, 3), (3, 6)])
def test_a_staircase_has_the_square_of_its_detour(steps, width):
    # N cells in a row conduct 1/N; at a length L and a width W the fraction is N/(L W): τ = (N/L)²
    phase, cells = staircase(steps, width)
    for volume in (phase, np.repeat(phase[..., None], 4, axis=2)):
        for axis in range(volume.ndim):
            found = tortuosity_factor(np.moveaxis(volume, 0, axis), 0.3, axis)
            assert found.tortuosity_factor == pytest.approx((cells / len(phase)) ** 2, rel=2e-3)
            assert found.flux_residual <= 1e-3


def test_dead_ends_and_islands_count_in_the_fraction_only():
    phase = np.zeros((20, 20, 8), bool)
    phase[:, 4:8] = True
    channel = tortuosity_factor(phase, 1.0, 0)
    phase[:5, 12:16] = True  # a dead end at the face
    phase[10:14, 12:16, 3:5] = True  # an island
    found = tortuosity_factor(phase, 1.0, 0)
    assert found.relative_diffusivity == pytest.approx(channel.relative_diffusivity, rel=1e-6)
    assert found.tortuosity_factor == pytest.approx(found.fraction / channel.fraction, rel=1e-6)
    assert found.percolating_fraction == channel.fraction


@pytest.mark.parametrize("size", [(1.0, 1.0, 1.0), (1.0, 0.5, 1.7)])
def test_random_media_agree_with_a_dense_solver(size):
    rng, solved = np.random.default_rng(0), 0
    for shape in ((16, 14), (9, 8, 10), (7, 10, 9)):
        phase = rng.random(shape) < 0.72
        for axis in range(len(shape)):
            spacing = size[: len(shape)]
            found = tortuosity_factor(phase, spacing, axis)
            turned = [spacing[axis], *(h for k, h in enumerate(spacing) if k != axis)]
            truth = dense(np.moveaxis(phase, axis, 0), turned)
            assert found.relative_diffusivity == pytest.approx(truth, rel=1e-3, abs=1e-12)
            solved += truth > 1e-6
    assert solved >= 6


def test_axes_mirrors_and_units_leave_it_unchanged():
    phase = np.random.default_rng(1).random((12, 14, 10)) < 0.7
    truth = tortuosity_factor(phase, 1.0, 0).tortuosity_factor
    for same, axis in (
        (phase[::-1], 0),
        (phase[:, ::-1], 0),
        (phase.transpose(1, 0, 2), 1),
        (phase.transpose(2, 1, 0), 2),
    ):
        assert tortuosity_factor(same, 0.05, axis).tortuosity_factor == pytest.approx(truth, rel=2e-3)


def test_a_full_and_an_empty_box():
    full = tortuosity_factor(np.ones((6, 7), bool), 1.0, 1)
    assert full.tortuosity_factor == pytest.approx(1) and full.fraction == 1
    empty = tortuosity_factor(np.zeros((6, 7), bool), 1.0, 1)
    assert empty == Tortuosity(math.inf, 0.0, 0.0, 0.0, 0.0, True, None)


@pytest.mark.filterwarnings("ignore")  # a library of others, and those it loads
def test_taufactor_agrees():
    pytest.importorskip("taufactor")
    phase = np.random.default_rng(2).random((24, 20, 22)) < 0.6
    theirs = tortuosity_factor(phase, 1.0, 1, solver="taufactor", device="cpu")
    ours = tortuosity_factor(phase, 1.0, 1, solver="conjugate gradients")
    assert theirs.solver == "taufactor" and theirs.converged
    assert theirs.tortuosity_factor == pytest.approx(ours.tortuosity_factor, rel=2e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"axis": 2}, "axis=2 of a 2D image"),
        ({"solver": "sor"}, "solver='sor' must be one of"),
        ({"voxel_size_um": (1, 2), "solver": "taufactor"}, "taufactor needs cubes"),
        ({"voxel_size_um": -1}, "voxel_size_um=-1"),
    ],
)
def test_bad_input_is_one_clear_error(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        tortuosity_factor(**{"phase": np.ones((5, 5), bool), "voxel_size_um": 1.0, "axis": 0} | arguments)
    assert "\n" not in str(caught.value)


def test_taufactor_missing_is_one_clear_line(monkeypatch):
    from bundle import transport

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(transport.importlib, "import_module", missing)
    with pytest.raises(ImportError, match="pip install taufactor"):
        tortuosity_factor(np.ones((5, 5), bool), 1.0, 0, solver="taufactor")
    assert tortuosity_factor(np.ones((5, 5), bool), 1.0, 0, device="cuda").solver == "conjugate gradients"
