"""Scores of saliency maps: the empty and the odd first, then PySODMetrics and the values it publishes."""

import json
import logging
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from references import CURVES, SINGLE, pysodmetrics_of

from res2net_dense.errors import DatasetError
from res2net_dense.evaluation.saliency import METRICS, PROTOCOLS, SaliencyEvaluator, SaliencyScores
from res2net_dense.evaluation.saliency_measures import score_map


def disc(height, width, centre, radius):
    y, x = np.mgrid[:height, :width]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2


def made(number=6, seed=0):
    """Maps and masks, no two of one size; maps are noisy and do not reach from 0 to 255."""
    rng = np.random.default_rng(seed)
    maps, masks = [], []
    for n in range(number):
        height, width = 40 + 9 * n, 75 - 8 * n
        masks.append(disc(height, width, rng.uniform(10, 35, 2), 6 + 2 * n))
        maps.append(np.clip(masks[-1] * 120 + rng.normal(60, 30, (height, width)), 7, 230).astype(np.uint8))
    return maps, masks


def assert_equals_reference(saliency, mask, rescale=True, names=SINGLE + CURVES):
    ours, theirs = score_map(saliency, mask, rescale=rescale), pysodmetrics_of(saliency, mask, rescale)
    if np.isnan(theirs["s"]):  # see the test of a quarter without pixels
        theirs["s"] = np.clip(ours.s, 0, 1)
    for name in names:
        np.testing.assert_allclose(getattr(ours, name), theirs[name], rtol=0, atol=1e-12, err_msg=name)


def evaluator(masks, **options):
    return SaliencyEvaluator(masks.__getitem__, options.pop("sets", [("made", len(masks))]), **options)


def as_prediction(saliency):
    return {"saliency": torch.from_numpy(saliency / np.float32(255))}


def feed(ours, maps, ids=None):
    ids = range(len(maps)) if ids is None else ids
    ours.process([{"image_id": i} for i in ids], [as_prediction(maps[i]) for i in ids])


def scores(maps, masks, **options):
    ours = evaluator(masks, **options)
    feed(ours, maps)
    return ours.evaluate()


# the empty and the missing


def test_no_image_has_no_scores():
    nothing = SaliencyScores()
    assert tuple(nothing.metrics()) == METRICS == tuple(PROTOCOLS)
    assert all(np.isnan(value) for value in nothing.metrics().values())
    assert all(curve.shape == (256,) and np.isnan(curve).all() for curve in nothing.curves().values())
    empty = evaluator([])
    empty.process([], [])
    assert empty.table() == ""
    assert all(np.isnan(value) for value in empty.evaluate().values())
    assert "n/a" in empty.table()


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("size", [(1, 2), (5, 1), (6, 7), (33, 20)])
@pytest.mark.parametrize("salient", ["none", "all", "some"])
def test_empty_full_and_constant_maps_equal_the_reference(salient, size, rescale):
    rng = np.random.default_rng(1)
    mask = np.full(size, salient == "all")
    if salient == "some":
        mask[0, 0] = True
        mask[: size[0] // 2, : size[1] // 2] |= rng.random((size[0] // 2, size[1] // 2)) < 0.5
    for value in (0, 1, 100, 128, 254, 255):
        maps = np.full(size, value, np.uint8)
        assert_equals_reference(maps, mask, rescale)
    if salient != "some":
        assert_equals_reference(rng.integers(0, 256, size).astype(np.uint8), mask, rescale)


@pytest.mark.parametrize("value", [0, 90, 255])
@pytest.mark.parametrize("salient", [False, True])
def test_an_image_of_one_pixel(salient, value):
    """All but E, which the reference divides by 2e-16, so that one such image is all a set's mean is."""
    saliency, mask = np.full((1, 1), value, np.uint8), np.full((1, 1), salient)
    assert_equals_reference(
        saliency, mask, names=[n for n in SINGLE + CURVES if n not in ("e", "adaptive_e")]
    )
    ours = score_map(saliency, mask)
    above = np.arange(256) <= value
    np.testing.assert_array_equal(ours.e, above == salient)
    adaptive = value / 255 >= min(2 * value / 255, 1)
    assert ours.adaptive_e == (adaptive == salient)


@pytest.mark.parametrize("size", [(1, 2), (4, 1), (5, 6), (12, 9)])
def test_a_quarter_without_pixels_has_no_weight_in_s(size, monkeypatch):
    """All salient pixels are in the last row and column: the reference's mean of nothing is NaN."""
    sod = pytest.importorskip("py_sod_metrics")
    saliency = np.random.default_rng(2).integers(0, 256, size).astype(np.uint8)
    mask = np.zeros(size, bool)
    mask[-1, -1] = True
    assert np.isnan(pysodmetrics_of(saliency, mask)["s"])
    theirs = sod.Smeasure.ssim
    monkeypatch.setattr(sod.Smeasure, "ssim", lambda self, p, g: theirs(self, p, g) if p.size else 0.0)
    assert_equals_reference(saliency, mask)


def test_an_image_not_seen_counts_as_zeros(caplog):
    maps, masks = made()
    ours = evaluator(masks)
    feed(ours, maps, range(4))
    with caplog.at_level(logging.WARNING):
        results = ours.evaluate()
    assert [record.getMessage() for record in caplog.records] == [
        "only 4 of 6 images were evaluated; the others count as maps of zeros"
    ]
    assert results == scores([*maps[:4], *(np.zeros_like(m) for m in maps[4:])], masks)
    assert results["MAE"] != scores(maps, masks)["MAE"]


# references


@pytest.mark.parametrize("seed", range(40))
def test_random_maps_equal_the_reference(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(2, (9, 50, 130)[seed % 3], 2)
    share = rng.choice([0.02, 0.2, 0.5, 0.9])
    mask = rng.random((height, width)) < share
    if seed % 2:
        mask = disc(height, width, rng.random(2) * (height, width), 1 + rng.random() * height / 2)
    mask[0, 0] = True
    mask[-1, -1] = False
    low, high = sorted(rng.integers(0, 256, 2))
    saliency = rng.integers(low, high + 1, (height, width))
    kind = seed % 5
    if kind == 1:
        saliency = mask * high  # right, but for the scale
    elif kind == 2:
        saliency = rng.choice([low, (low + high) // 2, high], (height, width))
    elif kind == 3:
        saliency = np.where(rng.random((height, width)) < 0.8, mask * 255, saliency)
    for rescale in (True, False):
        assert_equals_reference(saliency.astype(np.uint8), mask, rescale)


@pytest.mark.parametrize("rescale", [True, False])
def test_every_range_of_a_map_has_the_references_thresholds(rescale):
    """A value of a stretched map times 255 is cut off, so its last bit decides."""
    mask = np.arange(256).reshape(16, 16) % 3 == 0
    rng = np.random.default_rng(0)
    for _ in range(60):
        low, high = sorted(rng.choice(256, 2, replace=False))
        saliency = np.linspace(low, high, 256).round().astype(np.uint8).reshape(16, 16)
        assert_equals_reference(saliency, mask, rescale)


def a_small_object_in_a_large_image():
    mask = disc(500, 701, (12, 690), 5)
    mask[499, 0] = True
    return mask


def objects_at_the_edges():
    """Where the Gaussian of the weighted F reaches over the image's edge."""
    mask = np.ones((31, 44), bool)
    mask[9:20, 5:39] = False
    mask[14, 20] = True
    return mask


@pytest.mark.parametrize("mask", [a_small_object_in_a_large_image(), objects_at_the_edges()])
def test_noise_over_odd_masks_equals_the_reference(mask):
    rng = np.random.default_rng(0)
    assert_equals_reference(rng.integers(0, 256, mask.shape).astype(np.uint8), mask)


def test_scores_equal_the_published_ones(shared_data):
    folder = shared_data / "reference" / "pysodmetrics"
    maps, masks, sets = [], [], SaliencyScores()
    for file in sorted((folder / "test_data" / "preds").iterdir()):
        maps.append(np.array(Image.open(file).convert("L")))
        masks.append(np.array(Image.open(folder / "test_data" / "masks" / file.name).convert("L")) > 128)
        sets.add(score_map(maps[-1], masks[-1]))
    published = {}
    for values in json.loads((folder / "version_performance.json").read_text()).values():
        published |= values  # in the order of the versions
    names = {
        "MAE": "MAE", "max_F": "maxFm", "mean_F": "meanFm", "adaptive_F": "adpFm", "weighted_F": "wFmeasure",
        "S": "Smeasure", "max_E": "maxEm", "mean_E": "meanEm", "adaptive_E": "adpEm",
        "max_IoU": "maxiou", "mean_IoU": "meaniou", "adaptive_IoU": "adpiou",
    }  # fmt: skip
    results = sets.metrics()
    assert len(maps) == 3
    for ours, theirs in names.items():
        assert results[ours] == pytest.approx(published[theirs], abs=1e-10), ours
    curves = sets.curves()
    for ours, theirs in (("precision", "pre"), ("recall", "rec")):
        assert curves[ours].max() == pytest.approx(published[f"max{theirs}"], abs=1e-10)
        assert curves[ours].mean() == pytest.approx(published[f"mean{theirs}"], abs=1e-10)
    fed = scores(maps, masks)
    assert fed == results


# what is the same, scores the same


def test_floats_score_as_the_file_they_are_saved_to():
    rng = np.random.default_rng(0)
    saliency, mask = rng.random((40, 50), np.float32), disc(40, 50, (20, 20), 12)
    saved = Image.fromarray(np.round(saliency * 255.0).astype(np.uint8))
    for dtype in (np.float32, np.float64):
        as_float, as_file = (score_map(s, mask) for s in (saliency.astype(dtype), np.array(saved)))
        assert pickle.dumps(as_float) == pickle.dumps(as_file)


def test_a_view_scores_as_its_copy():
    maps, masks = made(1)
    wide, wide_mask = np.repeat(maps[0], 2, axis=1), np.repeat(masks[0], 2, axis=1)
    ours, copied = (
        score_map(wide[:, ::2], wide_mask[:, ::2]),
        score_map(maps[0].copy(), masks[0].copy()),
    )
    for name in SINGLE + CURVES:
        np.testing.assert_allclose(getattr(ours, name), getattr(copied, name), rtol=0, atol=1e-12)


def test_stretching_a_map_changes_nothing_but_where_it_is_asked_for():
    mask = disc(40, 50, (20, 20), 12)
    weak = mask * np.uint8(51)
    assert score_map(weak, mask).mae == 0
    assert score_map(weak, mask, rescale=False).mae == pytest.approx(0.8 * mask.mean())
    assert scores([weak], [mask], rescale=False)["MAE"] == pytest.approx(0.8 * mask.mean())


# sets and words


def test_each_set_has_its_own_scores(caplog):
    maps, masks = made()
    sets = [("ECSSD", 2), ("none", 0), ("SOD", 3), ("last", 1)]
    results = scores(maps, masks, sets=sets)
    for name, part in (("ECSSD", slice(2)), ("SOD", slice(2, 5)), ("last", slice(5, 6))):
        alone = scores(maps[part], masks[part])
        assert {metric: results[f"{name}/{metric}"] for metric in METRICS} == alone
    assert all(np.isnan(results[f"none/{metric}"]) for metric in METRICS)
    assert len(results) == 4 * len(METRICS)


def test_the_table_has_a_row_a_set_and_names_the_protocols():
    maps, masks = made()
    ours = evaluator(masks, sets=[("DUT-OMRON", 4), ("SOD", 2)])
    feed(ours, maps)
    results = ours.evaluate()
    lines = ours.table().splitlines()
    assert max(map(len, lines)) <= 110
    columns = lines[0].split()[2:]
    for name, count in (("DUT-OMRON", 4), ("SOD", 2)):
        row = next(line for line in lines if line.startswith(name)).split()
        assert row[1] == str(count)
        assert row[2:] == [f"{results[f'{name}/{column}']:.4f}" for column in columns]
    for column in columns:
        assert any(line.split() == [column, *PROTOCOLS[column].split()] for line in lines), column
    assert "stretched to its own minimum" in lines[-1]
    plain = evaluator(masks, rescale=False)
    plain.evaluate()
    assert "taken as they are" in plain.table()


def test_wrong_predictions_are_named():
    maps, masks = made()
    ours = evaluator(masks)
    photo = [{"image_id": 0, "file_name": "photo.jpg"}]
    with pytest.raises(DatasetError, match="photo.jpg.*map is 75x41 but its mask 75x40"):
        ours.process(photo, [{"saliency": torch.zeros(41, 75)}])
    for value in (float("nan"), float("inf"), -0.01, 1.01):
        wrong = torch.zeros(40, 75)
        wrong[3, 3] = value
        with pytest.raises(DatasetError, match=r"image 0 \(photo.jpg\): .*finite and in \[0, 1\]"):
            ours.process(photo, [{"saliency": wrong}])
    with pytest.raises(DatasetError, match=r"photo.jpg.*shape \(1, 40, 75\)"):
        ours.process(photo, [{"saliency": torch.zeros(1, 40, 75)}])


def test_wrong_arrays_are_named():
    mask = np.zeros((4, 4), bool)
    for shape in ((0, 4), (4,), (4, 4, 3)):
        with pytest.raises(DatasetError, match="rows and columns"):
            score_map(np.zeros(shape, np.uint8), mask)
    for dtype in (np.int64, np.uint16, bool):
        with pytest.raises(DatasetError, match=f"8 bits or of floats.*not {np.dtype(dtype)}"):
            score_map(np.zeros((4, 4), dtype), mask)
    with pytest.raises(DatasetError, match="a mask is boolean, not uint8.*> 128"):
        score_map(np.zeros((4, 4), np.uint8), mask.astype(np.uint8))
    with pytest.raises(DatasetError, match="map is 4x3 but its mask 4x4"):
        score_map(np.zeros((3, 4), np.uint8), mask)
