"""The report of a real SupervisedEvaluator on tiny images, against direct calls of what it uses."""

import csv
import json
import logging

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.transforms import AsDiscreted
from scipy import ndimage

from bundle import evaluation
from bundle.baselines import BASELINES, segment_in_truth_order
from bundle.evaluation import EvaluationReport
from bundle.metrics import score

SPACING_UM = (0.65, 0.5, 2.0)
FILES = ("metrics.csv", "metrics.json", "metrics.md", "cases.png")


class _Threshold(torch.nn.Module):
    """Logits of the nearest class: a network that errs where the noise is strong."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.n_classes = n_classes
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        levels = torch.linspace(0, 1, self.n_classes)
        return torch.cat([-self.scale * (image - level) ** 2 for level in levels], dim=1)


@pytest.fixture
def no_picture(monkeypatch):
    """Spares the second that a picture takes where a test is about the tables."""
    monkeypatch.setattr(EvaluationReport, "_draw_cases", lambda self, report: None)


def _truth(shape: tuple[int, ...], n_classes: int, seed: int) -> np.ndarray:
    field = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 3, mode="wrap")
    return np.digitize(field, np.quantile(field, np.arange(1, n_classes) / n_classes)).astype(np.uint8)


def _data(shape: tuple[int, ...], n_classes: int, count: int = 4) -> list[dict[str, MetaTensor]]:
    """Image and label pairs, the noisier the later, with the metadata that LoadImage would give."""
    affine = torch.diag(torch.tensor([*SPACING_UM, 1.0], dtype=torch.float64))
    pairs = []
    for i in range(count):
        truth = _truth(shape, n_classes, seed=i)
        noise = np.random.default_rng(100 + i).standard_normal(shape)
        image = (truth / (n_classes - 1) + 0.06 * (i + 1) * noise).astype(np.float32)
        name = f"/data/test/images/scan_{i}.nii.gz"
        pairs.append(
            {
                key: MetaTensor(torch.from_numpy(array)[None], affine, {"filename_or_obj": name})
                for key, array in (("image", image), ("label", truth))
            }
        )
    return pairs


def _run(data: list[dict], n_classes: int, handler, postprocessing="argmax", network=None, **options) -> None:
    if postprocessing == "argmax":
        postprocessing = AsDiscreted(keys="pred", argmax=True)
    SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(data), batch_size=2),
        network=network or _Threshold(n_classes),
        postprocessing=postprocessing,
        val_handlers=[handler],
        **options,
    ).run()


def _rows(folder) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("shape", "class_names"), [((40, 36), ["pore", "solid"]), ((20, 18, 16), ["pore", "binder", "active"])]
)
def test_report_equals_direct_computation(tmp_path, shape, class_names):
    n_classes, data = len(class_names), _data(shape, len(class_names))
    _run(data, n_classes, EvaluationReport(tmp_path / "report", class_names, network_name="net"))
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == sorted(FILES)

    rows = _rows(tmp_path / "report")
    methods = ["net", *BASELINES]
    expected_pairs = [(f"scan_{i}.nii.gz", method) for i in range(4) for method in methods]
    assert [(row["image"], row["method"]) for row in rows] == expected_pairs
    network = _Threshold(n_classes)
    dice = {method: [] for method in methods}
    for i, pair in enumerate(data):
        image, truth = pair["image"].numpy()[0], pair["label"].numpy()[0]
        pred = network(pair["image"].as_tensor()[None]).argmax(dim=1)[0].numpy()
        for row in rows[i * len(methods) : (i + 1) * len(methods)]:
            method = row["method"]
            labels = pred if method == "net" else segment_in_truth_order(method, image, truth, n_classes)
            expected = score(labels, truth, n_classes, SPACING_UM[: len(shape)])
            assert {name: float(row[name]) for name in expected} == pytest.approx(expected, rel=1e-5, abs=1e-9)
            assert row["error"] == ""
            dice[method].append(expected["mean_dice"])

    report = json.loads((tmp_path / "report" / "metrics.json").read_text(encoding="utf-8"))
    assert report["n_images"] == 4 and report["class_names"] == class_names
    for method in methods:
        summary = report["methods"][method]["summary"]["mean_dice"]
        assert summary["mean"] == pytest.approx(np.mean(dice[method]))
        assert summary["sd"] == pytest.approx(np.std(dice[method], ddof=1))
        assert summary["n"] == 4
    best = max(BASELINES, key=lambda name: np.mean(dice[name]))
    assert report["best_baseline"] == best
    better = sum(a > b for a, b in zip(dice["net"], dice[best], strict=True))
    assert report["network_against_best_baseline"]["network_better"] == better

    table = (tmp_path / "report" / "metrics.md").read_text(encoding="utf-8")
    assert f"| net | {np.mean(dice['net']):.4f} ± {np.std(dice['net'], ddof=1):.4f} |" in table.replace("*", "")
    assert all(f"\n| {method} |" in table and f"- **{method}**: " in table for method in methods)
    assert ("Dice active" in table) == (n_classes > 2)
    picture = imread(tmp_path / "report" / "cases.png")
    assert picture.shape[0] > 600 and picture.shape[1] > 1500


def test_cases_are_best_median_and_worst(tmp_path, monkeypatch):
    drawn = []
    original = evaluation._case_figure
    monkeypatch.setattr(evaluation, "_case_figure", lambda cases, *a: drawn.extend(cases) or original(cases, *a))
    _run(_data((40, 36), 2, count=5), 2, EvaluationReport(tmp_path, ["pore", "solid"]))
    dice = [float(row["mean_dice"]) for row in _rows(tmp_path) if row["method"] == "unet"]
    ranked = sorted(range(5), key=lambda i: -dice[i])
    assert [case["index"] for case in drawn] == [ranked[0], ranked[2], ranked[4]]
    assert drawn[0]["title"] == f"best: scan_{ranked[0]}.nii.gz"


def test_volume_shows_the_slice_with_most_errors(tmp_path):
    truth = _truth((12, 10, 6), 2, 0)
    pred = truth.copy()
    pred[:, :, 4] = 1 - pred[:, :, 4]
    evaluation._save_slice(tmp_path / "s.npz", truth.astype(float), truth, {"net": pred}, "net", [1, 2, 3])
    with np.load(tmp_path / "s.npz") as stored:
        assert np.array_equal(stored["truth"], truth[:, :, 4])
        assert np.array_equal(stored["labels_net"], pred[:, :, 4])
        assert stored["spacing_um"].tolist() == [1, 2]
        assert "slice 5 of 6" in str(stored["note"])


@pytest.mark.parametrize(
    ("postprocessing", "options"),
    [
        (None, {}),  # logits
        (AsDiscreted(keys="pred", argmax=True, to_onehot=2), {}),
        (AsDiscreted(keys=["pred", "label"], argmax=[True, False], to_onehot=2), {}),
        (None, {"decollate": False}),
    ],
)
def test_class_maps_one_hot_logits_and_batches_score_alike(no_picture, tmp_path, postprocessing, options):
    data = _data((40, 36), 2)
    _run(data, 2, EvaluationReport(tmp_path / "a", ["pore", "solid"], baselines=False))
    handler = EvaluationReport(tmp_path / "b", ["pore", "solid"], baselines=False)
    _run(data, 2, handler, postprocessing, **options)
    assert _rows(tmp_path / "a") == _rows(tmp_path / "b")


def test_subset_of_baselines_spacing_given_and_plain_tensors(no_picture, tmp_path):
    data = [{key: value.as_tensor() for key, value in pair.items()} for pair in _data((40, 36), 2)]
    handler = EvaluationReport(tmp_path, ["pore", "solid"], baselines=["otsu"], spacing_um=3.0)
    _run(data, 2, handler)
    rows = _rows(tmp_path)
    assert [row["method"] for row in rows[:2]] == ["unet", "otsu"] and rows[0]["image"] == "image_0000"
    truth = data[0]["label"].numpy()[0]
    otsu = segment_in_truth_order("otsu", data[0]["image"].numpy()[0], truth, 2)
    assert float(rows[1]["mean_assd_um"]) == pytest.approx(score(otsu, truth, 2, 3.0)["mean_assd_um"], rel=1e-6)


def test_one_image_without_baselines(tmp_path):
    _run(_data((40, 36), 2, count=1), 2, EvaluationReport(tmp_path, ["pore", "solid"], baselines=False))
    report = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert report["best_baseline"] is None
    assert report["methods"]["unet"]["summary"]["mean_dice"]["sd"] is None
    assert (tmp_path / "cases.png").stat().st_size > 10_000


def test_baseline_that_fails_on_an_image_has_an_empty_row_that_says_why(tmp_path):
    data = _data((40, 36), 2)
    data[1]["image"][:] = 0.25
    _run(data, 2, EvaluationReport(tmp_path, ["pore", "solid"]))
    row = _rows(tmp_path)[len(BASELINES) + 2]
    assert (row["image"], row["method"]) == ("scan_1.nii.gz", "otsu")
    assert row["mean_dice"] == "" and "constant" in row["error"]
    report = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert report["methods"]["otsu"]["failed"] == 1
    assert report["methods"]["otsu"]["summary"]["mean_dice"]["n"] == 3
    assert report["methods"]["unet"]["summary"]["mean_dice"]["n"] == 4
    assert "Surfaces without a distance (class not in the truth, or not found): unet 1." in (
        tmp_path / "metrics.md"
    ).read_text(encoding="utf-8")


def test_images_of_background_only(tmp_path):
    data = _data((40, 36), 2, count=2)
    for pair in data:
        pair["label"][:] = 0
    _run(data, 2, EvaluationReport(tmp_path, ["pore", "solid"]))
    report = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert report["methods"]["unet"]["summary"]["mean_dice"]["mean"] is None
    assert report["best_baseline"] is None
    assert (tmp_path / "cases.png").exists()


def test_equal_file_names_keep_their_folders(no_picture, tmp_path):
    data = _data((40, 36), 2, count=2)
    for i, pair in enumerate(data):
        pair["image"].meta["filename_or_obj"] = f"/data/{i}/image.nii.gz"
    _run(data, 2, EvaluationReport(tmp_path, ["pore", "solid"], baselines=False))
    assert [row["image"] for row in _rows(tmp_path)] == ["0/image.nii.gz", "1/image.nii.gz"]


def test_second_run_replaces_the_report(tmp_path):
    handler = EvaluationReport(tmp_path, ["pore", "solid"], baselines=False)
    _run(_data((40, 36), 2, count=3), 2, handler)
    _run(_data((40, 36), 2, count=1), 2, handler)
    assert len(_rows(tmp_path)) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


def test_progress_and_result_are_logged(no_picture, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(evaluation, "LOG_EVERY_S", 0.0)
    with caplog.at_level(logging.INFO):
        _run(_data((40, 36), 2), 2, EvaluationReport(tmp_path, ["pore", "solid"], baselines=["otsu"]))
    messages = [record.getMessage() for record in caplog.records]
    assert any(m.startswith("Evaluation: 2 images scored, batch 1 of 2, about ") for m in messages)
    assert any(m.startswith("Evaluation: unet reaches Dice ") for m in messages)
    assert any(str(tmp_path) in m for m in messages)


def test_built_from_a_config(no_picture, tmp_path):
    config = {
        "output_dir": str(tmp_path),
        "report": {
            "_target_": "bundle.evaluation.EvaluationReport",
            "output_dir": "@output_dir",
            "class_names": ["pore", "solid"],
            "baselines": ["otsu"],
        },
    }
    handler = ConfigParser(config).get_parsed_content("report")
    _run(_data((40, 36), 2, count=1), 2, handler)
    assert len(_rows(tmp_path)) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_names": ["pore"]}, "class_names"),
        ({"class_names": "pore"}, "class_names"),
        ({"class_names": ["a", "b"], "baselines": ["magic"]}, "unknown baseline 'magic'; there are: otsu"),
        ({"class_names": ["a", "b"], "network_name": "otsu"}, "name of a baseline"),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        EvaluationReport(tmp_path, **arguments)


def _break_label_range(pair: dict) -> None:
    pair["label"][0, 0, 0] = 7


def _break_label_shape(pair: dict) -> None:
    pair["label"] = pair["label"][:, :30]


def _drop_affine(pair: dict) -> None:
    pair["image"] = pair["image"].as_tensor()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            _break_label_range,
            "scan_0.nii.gz: label has one channel, which must hold whole class numbers 0 to 1",
        ),
        (
            _break_label_shape,
            r"scan_0.nii.gz: image \(40, 36\), label \(30, 36\), pred \(40, 36\) must match",
        ),
        (_drop_affine, "image_0000: the image is no MetaTensor with an affine; give spacing_um"),
    ],
)
def test_bad_images_name_the_file_and_leave_nothing(tmp_path, spoil, message):
    data = _data((40, 36), 2, count=1)
    spoil(data[0])
    with pytest.raises(ValueError, match=message):
        _run(data, 2, EvaluationReport(tmp_path, ["pore", "solid"]))
    assert list(tmp_path.iterdir()) == []


def test_wrong_channels_are_named(tmp_path):
    with pytest.raises(ValueError, match="its first axis must be 1 or 3 classes"):
        handler = EvaluationReport(tmp_path, ["pore", "solid", "binder"])
        _run(_data((40, 36), 2, count=1), 2, handler, postprocessing=None)


def test_no_images(tmp_path):
    handler = EvaluationReport(tmp_path, ["pore", "solid"])
    handler._rows = []
    with pytest.raises(ValueError, match="no image"):
        handler._write(None)
