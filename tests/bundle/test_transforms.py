"""Random artefacts as MONAI transforms: what is drawn, kept and taken back, and the overlay that uses them."""

import json
import math

import monai.transforms as mt
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import CacheDataset, DataLoader, MetaTensor
from monai.transforms import Compose, GaussianSmoothd, Identityd, OneOf, ScaleIntensityRangePercentilesd
from scipy import ndimage

from bundle import transforms
from bundle.random_artifact import META_KEY, RandArtifactd
from bundle.slice_tomography import FADE_PX

ARTIFACTS = sorted(
    (kind for kind in vars(transforms).values() if isinstance(kind, type) and issubclass(kind, RandArtifactd)),
    key=lambda kind: kind.__name__,
)
ARTIFACTS = [kind for kind in ARTIFACTS if kind.__name__.startswith("Rand") and kind is not RandArtifactd]
INVERTIBLE = [kind for kind in ARTIFACTS if hasattr(kind, "inverse")]
SHAPES = [(1, 40, 48), (3, 40, 48), (1, 24, 20, 6)]


def image_of(shape, seed=0) -> MetaTensor:
    values = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return MetaTensor(values, meta={"filename_or_obj": "scan.nii"})


def pair_of(shape, seed=0):
    return {"image": image_of(shape, seed), "label": MetaTensor((image_of(shape, seed + 1) > 0.5).float())}


def test_all_artefacts_are_here():
    assert len(ARTIFACTS) == 15


@pytest.mark.parametrize("shape", SHAPES)
def test_percentiles_are_those_of_monai(shape):
    pair = {"image": image_of(shape) * 7 - 3}
    seen = transforms.ScalePercentilesd("image", 2.0, 97.0)(pair)["image"]
    expected = ScaleIntensityRangePercentilesd("image", 2.0, 97.0, 0, 1)(pair)["image"]
    # both interpolate between the same two values, in float64 and in float32
    np.testing.assert_allclose(seen, expected, atol=10 * 7 * np.finfo(np.float32).eps)
    assert seen.dtype == torch.float32 and seen.meta["filename_or_obj"] == "scan.nii"


def test_percentiles_of_one_grey_value_are_zero():
    assert (transforms.ScalePercentilesd("image")({"image": torch.full((1, 4, 4), 3.0)})["image"] == 0).all()


def test_a_patch_keeps_the_scale_of_its_volume():
    inside = 0.9 + 0.03 * torch.randn(1, 30, 30, 30, generator=torch.Generator().manual_seed(0))
    act = transforms.ScalePercentilesd("image", part=True)
    assert torch.equal(act({"image": inside})["image"], inside)
    noisy = inside + 0.4 * torch.randn(1, 30, 30, 30, generator=torch.Generator().manual_seed(1))
    low, high = np.percentile(noisy, (0.5, 99.5))
    assert low < 0 and high > 1
    np.testing.assert_allclose(act({"image": noisy})["image"], (noisy - low) / (high - low), atol=1e-6)


@pytest.mark.parametrize("percentiles", [(-1, 99), (50, 50), (1, 101)])
def test_percentiles_rise(percentiles):
    with pytest.raises(ValueError, match="must rise"):
        transforms.ScalePercentilesd("image", *percentiles)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ARTIFACTS)
def test_draws_then_applies_and_keeps_what_it_drew(kind, shape):
    pair = pair_of(shape)
    before = pair["image"].clone()
    act = kind(keys="image", prob=1.0).set_random_state(3)
    seen = act(pair)
    assert seen["image"].shape == shape and seen["image"].dtype == torch.float32
    assert torch.isfinite(seen["image"]).all() and not torch.equal(seen["image"], before)
    assert seen["label"] is pair["label"]
    assert torch.equal(pair["image"], before)
    assert pair["image"].meta.keys() == before.meta.keys() and not pair["image"].applied_operations
    again = act.function(pair["image"].as_tensor(), **act.drawn)
    assert torch.equal(again, seen["image"].as_tensor())
    (record,) = json.loads(seen["image"].meta[META_KEY])
    assert record == {"name": kind.__name__, **act.drawn}
    assert seen["image"].meta["filename_or_obj"] == "scan.nii"


@pytest.mark.parametrize("kind", ARTIFACTS)
def test_the_random_state_decides(kind):
    pair = pair_of((1, 32, 32))
    act, other = kind(keys="image", prob=0.5), kind(keys="image", prob=0.5)
    act.set_random_state(7)
    first = [act(pair)["image"].as_tensor() for _ in range(6)]
    other.set_random_state(7)
    assert all(torch.equal(a, other(pair)["image"].as_tensor()) for a in first)
    changed = [not torch.equal(a, pair["image"].as_tensor()) for a in first]
    assert any(changed) and not all(changed)
    assert kind(keys="image", prob=0.0)(pair)["image"].equal(pair["image"])


@pytest.mark.parametrize("kind", ARTIFACTS)
def test_keys_share_the_parameters(kind):
    image = image_of((1, 32, 32))
    seen = kind(keys=["a", "b", "c"], prob=1.0, allow_missing_keys=True).set_random_state(1)({"a": image, "b": image})
    assert torch.equal(seen["a"], seen["b"])
    assert kind(keys="d", allow_missing_keys=True)({"a": image})["a"] is image
    with pytest.raises(KeyError):
        kind(keys="d")({"a": image})


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", INVERTIBLE)
@pytest.mark.parametrize("prob", [0.0, 1.0])
def test_is_taken_back(kind, shape, prob):
    pair = pair_of(shape)
    act = Compose([kind(keys="image", prob=prob)]).set_random_state(5)
    seen = act(pair)
    assert torch.equal(seen["image"], pair["image"]) == (prob == 0)
    assert len(seen["image"].applied_operations) == 1
    back = act.inverse(seen)
    # 1/(1 − 0.6) roundings of the halo, 1/(1 − 0.3) of the cupping; gamma's 1e-7 in the range of the image
    np.testing.assert_allclose(back["image"], pair["image"], atol=1e-5 if kind is not transforms.RandGammad else 1e-4)
    assert not back["image"].applied_operations and not pair["image"].applied_operations


def test_plain_tensors_will_do():
    image = torch.rand(1, 20, 20)
    assert transforms.RandHalod("image", prob=1.0)({"image": image})["image"].shape == image.shape


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: transforms.RandHalod("image", alpha=(0.5, 1.0)), r"alpha=\(0.5, 1.0\) must be .* in \[0, 0.99\]"),
        (lambda: transforms.RandHalod("image", alpha=(0.5, 0.2)), "rising"),
        (lambda: transforms.RandGammad("image", gamma=0), "gamma=0 must be"),
        (lambda: transforms.RandRingsd("image", full_turn=1.5), "full_turn=1.5"),
        (lambda: transforms.RandMotiond("image", kinds=[1, 1]), "kinds"),
        (lambda: transforms.RandSparseViewsd("image", n_views="many"), "n_views='many'"),
        (lambda: transforms.RandHalod("image", prob=40), r"prob=40 must be a number in \[0, 1\]"),
        (lambda: transforms.RandMotiond("image", n_views=100.7), "n_views=100.7 must be a whole number"),
        (lambda: transforms.RandMotiond("image", most_jumps=0), r"most_jumps=0 must be a whole number in \[1, 100\]"),
        (lambda: transforms.RandStreaksd("image", most=2.5), "most=2.5 must be a whole number"),
        (lambda: transforms.BeyondBorderd("image", [], border_px=2.5), "border_px=2.5 must be a whole number"),
        (lambda: transforms.ScalePercentilesd("image", images=0), "images=0 must be a whole number"),
        (lambda: transforms.RandCuppingd("image", prob=1.0)({"image": torch.rand(9, 9)}), r"\(9, 9\)"),
    ],
)
def test_bad_arguments_are_named(make, said):
    with pytest.raises(ValueError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_rings_follow_the_centre_that_is_drawn():
    act = transforms.RandRingsd("image", prob=1.0, centre=0.4, gain_sd=3.0, error_sd=0.0, share=0.0, full_turn=1.0)
    act.set_random_state(2)
    flat = torch.zeros(1, 81, 81)
    rings = act({"image": flat})["image"][0]
    row, column = (40 + round(c) for c in act.drawn["centre_px"])
    # a ring pattern of a full turn is the same after half a turn about its centre, but for the fraction of a pixel
    reach = min(row, column, 80 - row, 80 - column)
    square = rings[row - reach : row + reach + 1, column - reach : column + reach + 1]
    away = rings.roll((9, 9), (0, 1))[row - reach : row + reach + 1, column - reach : column + reach + 1]

    def symmetry(values):
        return np.corrcoef(values.flatten(), values.flip(0, 1).flatten())[0, 1]

    assert reach > 4 and symmetry(square) > 0.5 > symmetry(away)


def test_a_cached_image_keeps_no_notes():
    choice = OneOf([transforms.RandHalod("image", prob=1.0), Identityd("image")])
    data = CacheDataset(
        [pair_of((1, 16, 16))],
        Compose([Identityd("image"), transforms.ShallowCopyd(["image", "label"]), choice]),
        copy_cache=False,
        progress=False,
    )
    lengths = [len(data[0]["image"].applied_operations) for _ in range(5)]
    assert max(lengths) <= 2  # OneOf's note and the halo's
    cached = data._cache[0]
    assert not cached["image"].applied_operations and not cached["label"].applied_operations


@pytest.mark.parametrize("shape", [(1, 20, 24), (2, 20, 24, 16), (1, 20, 24, 3)])
def test_blur_sees_the_image_go_on(shape):
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    seen = transforms.BeyondBorderd("image", [GaussianSmoothd("image", sigma=1.5)])({"image": image})["image"]
    border = 10
    wide = np.pad(image, [(0, 0), *[(border, border)] * 2, *[(0, 0)] * (len(shape) - 3)], mode="edge")
    place = np.indices(wide.shape)[1:3] - border
    away = np.hypot(*(at - at.clip(0, n - 1) for at, n in zip(place, shape[1:3], strict=True)))
    modes = ["constant", "constant", "reflect"][: len(shape) - 1]
    blurred = ndimage.gaussian_filter(wide * np.exp(-away / FADE_PX), 1.5, mode=modes, axes=range(1, len(shape)))
    # MONAI takes a Gaussian's mean over each voxel
    np.testing.assert_allclose(seen, blurred[:, border:-border, border:-border], atol=0.01)
    assert seen.is_contiguous()


def test_what_is_drawn_beyond_borders_follows_the_seed_and_keeps_the_metadata():
    noise = transforms.RandGreyNoised("image", 1.0)
    act = transforms.BeyondBorderd("image", [noise]).set_random_state(3)
    image = MetaTensor(torch.rand(1, 8, 8, 4), affine=torch.diag(torch.tensor([2.0, 2, 3, 1])))
    first = act({"image": image})["image"]
    assert torch.equal(first.affine, image.affine) and "RandGreyNoised" in first.meta["artifacts"]
    assert torch.equal(act.set_random_state(3)({"image": image})["image"], first)
    assert not torch.equal(act({"image": image})["image"], first)


MONAIS = [
    (mt.RandGaussianSmoothd("image", prob=1.0), lambda image, r: mt.GaussianSmooth((r["x"], r["y"]))(image)),
    (
        mt.RandGaussianSharpend("image", prob=1.0),
        lambda image, r: mt.GaussianSharpen((r["x1"], r["y1"]), (r["x2"], r["y2"]), r["a"])(image),
    ),
    (
        mt.RandSimulateLowResolutiond("image", prob=1.0, upsample_mode="bilinear"),
        lambda image, r: mt.RandSimulateLowResolution(1.0, upsample_mode="bilinear", zoom_range=[r["zoom_factor"]] * 2)(
            image
        ),
    ),
]


@pytest.mark.parametrize(("transform", "again"), MONAIS, ids=[type(t).__name__ for t, _ in MONAIS])
def test_what_monais_own_drew_is_recorded_and_makes_the_image_again(transform, again):
    pair = pair_of((1, 24, 20))
    act = transforms.Recordedd("image", transform).set_random_state(3)
    seen = act(pair)["image"]
    (record,) = json.loads(seen.meta[META_KEY])
    assert record.pop("name") == type(transform).__name__
    assert torch.equal(again(pair["image"], record).as_tensor(), seen.as_tensor())
    assert not torch.equal(seen, pair["image"]) and META_KEY not in pair["image"].meta
    transform.prob = 0.0
    assert META_KEY not in act(pair)["image"].meta


def test_noise_and_shading_of_monai_are_recorded():
    image = image_of((1, 40, 30))
    noisy = transforms.Recordedd("image", mt.RandGaussianNoised("image", 1.0, std=0.3))({"image": image})["image"]
    (record,) = json.loads(noisy.meta[META_KEY])
    assert record["noise_sd"] == pytest.approx(float((noisy - image).std(correction=0)), rel=1e-5)
    shaded = transforms.Recordedd("image", mt.RandBiasFieldd("image", prob=1.0))({"image": noisy})["image"]
    record = json.loads(shaded.meta[META_KEY])[1]
    field = mt.RandBiasField()._generate_random_field((40, 30), 3, record["coeff"])
    np.testing.assert_allclose(shaded[0], noisy[0] * np.exp(field), rtol=1e-5, atol=1e-6)


# configs/augment.json


def augmentation(root, **overrides) -> Compose:
    parser = ConfigParser()
    parser.read_config([str(root / "configs" / name) for name in ("train.json", "augment.json")])
    whole = overrides.get("spatial_dims", 2) == 2
    for key, value in {"channel_names": ["CT"], "whole_object": whole, **overrides}.items():
        parser[key] = value
    return Compose(parser.get_parsed_content("augmentation"))


def families(root) -> list[str]:
    return [key for key in json.loads((root / "configs/augment.json").read_text()) if key.endswith("_prob")]


@pytest.mark.parametrize(
    ("dims", "shape"),
    [(2, (1, 48, 40)), (2, (3, 48, 40)), (3, (1, 24, 20, 16)), (2, (1, 48, 40, 5)), (2, (1, 48, 40, 1))],  # 2.5D
)
def test_the_overlay_makes_batches(root, dims, shape):
    act = augmentation(root, spatial_dims=dims, data_dims=len(shape) - 1, clean_prob=0.3)
    data = [pair_of(shape, k) for k in range(12)]
    batches = list(DataLoader(CacheDataset(data, act, progress=False), batch_size=4))
    left_alone = 0
    for k, batch in enumerate(batches):
        assert batch["image"].shape == (4, *shape)
        records = [json.loads(record) for record in batch["image"].meta[META_KEY]]
        for image, record in zip(batch["image"].as_tensor(), records, strict=True):
            alone = any(torch.equal(image, pair["image"].as_tensor()) for pair in data)
            assert not (alone and record)
            left_alone += alone
        assert torch.isfinite(batch["image"]).all()
        for image in batch["image"].as_tensor():  # scaled as at inference; those left alone are of random numbers
            low, high = np.percentile(image, (0.5, 99.5))
            assert low > -0.02 and high < 1.02 and (len(shape) == 4 or (low < 0.02 and high > 0.98))
        assert torch.equal(
            batch["label"].as_tensor(), torch.stack([pair["label"].as_tensor() for pair in data[4 * k :][:4]])
        )
    assert left_alone  # and their batches have the records of the others


def test_every_family_can_be_switched_off(root):
    pair, names = pair_of((1, 32, 32)), families(root)
    assert {"noise_prob", "ring_prob", "motion_prob", "blur_prob", "sparse_prob"} <= set(names)
    act = augmentation(root, **dict.fromkeys(names, 0.0))
    low, high = np.percentile(pair["image"], (0.5, 99.5))
    for _ in range(3):
        np.testing.assert_allclose(act(pair)["image"], (pair["image"] - low) / (high - low), atol=1e-5)


SHADINGS = ["RandBeamHardeningd", "RandScatterd", "RandCuppingd", "RandLocalTomographyd", "RandBiasFieldd"]
FAMILIES = {  # which act in one call: one of these lists
    "sparse": [["RandSparseViewsd"]],
    "wedge": [["RandMissingWedged"]],
    "motion": [["RandMotiond"]],
    "resolution": [["RandSimulateLowResolutiond"]],
    "blur": [["RandGaussianSmoothd"]],
    "sharpen": [["RandGaussianSharpend"]],
    "halo": [["RandHalod"]],
    "shading": [[name] for name in SHADINGS],
    "noise": [["RandReconstructionNoised"], ["RandGaussianNoised"], ["RandGreyNoised"]],
    "ring": [["RandRingsd"]],
    "streak": [["RandStreaksd", "RandDotsd"]],
    "contrast": [["RandGammad"]],
    "inversion": [["RandInvertIntensityd"]],
}


def names_of(act, pair, calls) -> list[list[str]]:
    """Of each call, which artefacts acted."""
    metas = [act(pair)["image"].meta for _ in range(calls)]
    return [[record["name"] for record in json.loads(meta.get(META_KEY, "[]"))] for meta in metas]


def test_every_family_is_tested(root):
    assert {f"{family}_prob" for family in FAMILIES} | {"clean_prob"} == set(families(root))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_alone_is_that_family(root, family):
    names = dict.fromkeys(families(root), 0.0)
    act = augmentation(root, **names | {f"{family}_prob": 1.0}).set_random_state(0)
    pair, expected = pair_of((1, 32, 32)), FAMILIES[family]
    # the rarest, one in ten, is missed by 80 calls with a chance of 0.9⁸⁰ = 0.02 %; the seed is fixed
    seen = names_of(act, pair, 2 if len(expected) == 1 else 80)
    assert sorted(map(tuple, expected)) == sorted(set(map(tuple, seen)))


@pytest.mark.parametrize(
    ("dims", "shape"), [(2, (1, 32, 32)), (3, (1, 16, 16, 8))], ids=["a slice that is no whole object", "a patch"]
)
def test_what_needs_the_whole_object_is_left_out_where_it_is_not_there(root, dims, shape):
    options = {"spatial_dims": dims, "data_dims": dims, "whole_object": False}

    def only(family):
        return augmentation(root, **dict.fromkeys(families(root), 0.0) | options | {family: 1.0}).set_random_state(0)

    act = only("shading_prob")
    assert {name for (name,) in names_of(act, pair_of(shape), 40)} == set(SHADINGS[2:])
    act = only("noise_prob")
    records = [json.loads(act(pair_of(shape))["image"].meta[META_KEY])[0] for _ in range(20)]
    assert {record["depth"] for record in records if "depth" in record} == {0.0}


@pytest.mark.parametrize(
    ("dims", "shape"), [(2, (1, 40, 40, 5)), (2, (1, 40, 40, 1)), (3, (1, 20, 20, 20))], ids=["slab", "slice", "patch"]
)
def test_a_part_of_a_volume_that_is_one_phase_stays_as_grey_as_it_is(root, dims, shape):
    inside = 0.9 + 0.03 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    act = augmentation(root, **dict.fromkeys(families(root), 0.0), spatial_dims=dims, data_dims=3)
    assert torch.equal(act({"image": inside, "label": inside})["image"], inside)


def test_the_share_of_images_left_alone(root):
    names = dict.fromkeys(families(root), 0.0)
    n, clean = 200, 0.25
    act = augmentation(root, **names | {"clean_prob": clean, "inversion_prob": 1.0}).set_random_state(0)
    pair = pair_of((1, 8, 8))
    same = sum(bool(torch.equal(act(pair)["image"], pair["image"])) for _ in range(n))
    assert same / n == pytest.approx(clean, abs=4 * math.sqrt(clean * (1 - clean) / n))


@pytest.mark.parametrize("dims", [2, 3])
def test_low_resolution_does_not_shift_the_image_off_its_label(root, dims):
    shape = (64, 48, 32)[:dims]
    at = torch.stack(torch.meshgrid(*(torch.arange(n) - (n - 1) / 2 for n in shape), indexing="ij"))
    blob = torch.exp(-(at**2).sum(0) / (2 * 5**2))[None]
    steps = augmentation(root, spatial_dims=dims, data_dims=dims).transforms[1].transforms[0].transforms
    recorded = [step.transform for step in steps if isinstance(step, transforms.Recordedd)]
    low = next(step for step in recorded if isinstance(step, mt.RandSimulateLowResolutiond))
    low.prob, low.sim_lowres_tfm.prob, low.sim_lowres_tfm.zoom_range = 1.0, 1.0, (0.5, 0.5)
    seen = low({"image": blob})["image"]
    assert not torch.allclose(seen, blob, atol=1e-4)
    for axis in range(dims):  # half a pixel if each kept voxel were the first of its two
        assert float((seen[0] * at[axis]).sum() / seen.sum()) == pytest.approx(0, abs=0.05)


def test_pairs_that_do_not_fit_are_named():
    check = transforms.CheckPaird(num_classes=2)
    pair = pair_of((1, 8, 8))
    assert check(pair).keys() == pair.keys()
    for bad, said in (
        ({"label": pair["label"][:, :4]}, "shape"),
        ({"image": pair["image"] * math.nan}, "NaN"),
        ({"label": pair["label"] + 1}, "from 1 to 2"),
    ):
        with pytest.raises(ValueError, match=said):
            check(pair | bad)
