"""2.5D: which slices a 2D network sees."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from bundle.slices import SlicesToChannelsd, stack_neighbours


@pytest.mark.parametrize("neighbours", [0, 1, 3])
def test_neighbours_are_the_slices_beside_ends_repeated(neighbours):
    volume = np.random.default_rng(0).random((2, 1, 5, 4, 6), dtype=np.float32)
    stacked = stack_neighbours(torch.from_numpy(volume), neighbours).numpy()
    padded = np.pad(volume[:, 0], ((0, 0), (0, 0), (0, 0), (neighbours, neighbours)), mode="edge")
    assert stacked.shape == (2, 2 * neighbours + 1, 5, 4, 6)
    for z in range(6):
        np.testing.assert_array_equal(stacked[..., z], padded[..., z : z + 2 * neighbours + 1].transpose(0, 3, 1, 2))


def test_one_slice_is_its_own_neighbour():
    image = torch.rand(1, 1, 5, 4)
    stacked = stack_neighbours(image, 2)
    assert stacked.shape == (1, 5, 5, 4)
    assert all(torch.equal(stacked[:, k : k + 1], image) for k in range(5))


def test_slab_becomes_channels_and_its_label_the_middle():
    image, label = torch.rand(1, 5, 4, 3), torch.randint(0, 2, (1, 5, 4, 3)).float()
    item = SlicesToChannelsd()({"image": MetaTensor(image, meta={"filename_or_obj": "a"}), "label": label, "other": 1})
    assert item["image"].shape == (3, 5, 4) and item["image"].meta["filename_or_obj"] == "a"
    assert all(torch.equal(item["image"][k].as_tensor(), image[0, ..., k]) for k in range(3))
    assert torch.equal(item["label"], label[..., 1]) and item["other"] == 1


@pytest.mark.parametrize("shape", [(1, 5, 4, 2), (1, 5, 4)])
def test_slab_without_a_middle_is_refused(shape):
    with pytest.raises(ValueError, match="slab"):
        SlicesToChannelsd()({"image": torch.zeros(shape), "label": torch.zeros(shape)})
