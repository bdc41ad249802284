"""Losses of saliency maps: padding has no influence, and they equal the formulas of others."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from res2net_dense.models.saliency_losses import LOSSES, edge_loss, edge_targets, saliency_losses

ALL = dict.fromkeys(LOSSES, 1.0)
GARBAGE = (0.0, 7.0, 1e30, float("inf"), float("nan"))


def blobs(count, height, width, seed=0):
    """(N, H, W) float masks of smooth shapes."""
    noise = torch.randn(count, 1, 5, 5, generator=torch.Generator().manual_seed(seed))
    return (F.interpolate(noise, size=(height, width), mode="bicubic") > 0).float()[:, 0]


def make(count=2, height=37, width=45, seed=0):
    """Logits that know a little of their masks; nothing is padded."""
    targets = blobs(count, height, width, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    logits = torch.randn(count, 1, height, width, generator=generator) + 2 * targets[:, None] - 1
    return logits, targets, torch.ones(count, height, width, dtype=torch.bool)


def everything(logits, targets, valid):
    """All losses of this module under their names."""
    losses = saliency_losses(logits, targets, valid, ALL)
    return {**losses, "edge": edge_loss(logits, edge_targets(targets, valid), valid)}


def loss(name, *tensors):
    return everything(*tensors)[name]


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("score", [-100.0, 0.0, 100.0])
def test_empty_and_full_masks(value, score):
    """Finite whatever is said of them, and free of loss where that is right."""
    targets = torch.full((1, 20, 20), value)
    logits = torch.full((1, 1, 20, 20), score, requires_grad=True)
    valid = torch.ones(1, 20, 20, dtype=torch.bool)
    assert not edge_targets(targets, valid).any()
    losses = saliency_losses(logits, targets, valid, ALL)
    (sum(losses.values()) + edge_loss(logits, targets, valid)).sum().backward()
    assert logits.grad.isfinite().all()
    right = score == (100.0 if value else -100.0)
    for name, found in losses.items():
        assert found.isfinite().all(), name
        assert (found.item() < 1e-5) == right, name


@pytest.mark.parametrize("score", [-100.0, 100.0])
def test_sure_and_right_or_wrong_is_finite(score):
    _, targets, valid = make()
    logits = (score * (2 * targets - 1))[:, None].requires_grad_()
    losses = {**saliency_losses(logits, targets, valid, ALL), "edge": edge_loss(logits, targets, valid)}
    sum(losses.values()).sum().backward()
    assert logits.grad.isfinite().all()
    for name, found in losses.items():
        assert found.isfinite().all(), name
        assert ((found < 1e-5) if score > 0 else (found > 0.7)).all(), name
    if score < 0:
        assert losses["bce"].tolist() == losses["edge"].tolist() == [100.0, 100.0]


def test_an_image_without_pixels_has_no_loss():
    logits, targets, valid = make()
    logits.requires_grad_()
    valid[1] = False
    losses = everything(logits, targets, valid)
    sum(losses.values()).sum().backward()
    for name, found in losses.items():
        assert found.isfinite().all()
        assert found[1] == 0, name
    assert logits.grad.isfinite().all()
    assert not logits.grad[1].any()


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 60), (40, 33)])
def test_neither_padding_nor_the_other_images_change_a_loss(height, width, garbage):
    alone = make(1, height, width)
    logits = torch.full((2, 1, 64, 96), garbage)
    targets = torch.full((2, 64, 96), garbage)
    valid = torch.zeros(2, 64, 96, dtype=torch.bool)
    logits[0, :, :height, :width], targets[0, :height, :width], valid[0, :height, :width] = (
        tensor[0] for tensor in alone
    )
    logits[1], targets[1], valid[1] = (tensor[0] for tensor in make(1, 64, 96, seed=4))
    wanted, found = everything(*alone), everything(logits, targets, valid)
    for name in wanted:
        torch.testing.assert_close(found[name][:1], wanted[name], atol=1e-6, rtol=1e-6)
        assert found[name].isfinite().all()
    edges = edge_targets(targets, valid)
    assert torch.equal(edges[0, :height, :width], edge_targets(*alone[1:])[0])
    assert not edges[0][~valid[0]].any()


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("name", [*ALL, "edge"])
def test_padding_has_no_gradient_and_the_image_its_own(name, garbage):
    alone, targets, valid = make(1, 21, 30)
    logits = F.pad(alone, (0, 18, 0, 11), value=garbage).requires_grad_()
    alone.requires_grad_()
    loss(name, alone, targets, valid).sum().backward()
    loss(name, logits, F.pad(targets, (0, 18, 0, 11), value=1), F.pad(valid, (0, 18, 0, 11))).sum().backward()
    assert alone.grad.abs().max() > 0
    torch.testing.assert_close(logits.grad[..., :21, :30], alone.grad, atol=1e-7, rtol=1e-5)
    assert not logits.grad[..., 21:, :].any()
    assert not logits.grad[..., 30:].any()


@pytest.mark.parametrize("name", [*ALL, "edge"])
def test_gradients(name):
    logits, targets, valid = make(2, 7, 9)
    valid[0, 5:], valid[1, :, 6:] = False, False
    logits = logits.double().requires_grad_()
    assert loss(name, logits, targets, valid).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda x: loss(name, x, targets, valid), (logits,))


def test_bce_is_that_of_torch():
    logits, targets, valid = make(1, 50, 41)
    wanted = F.binary_cross_entropy_with_logits(logits[0, 0, :33, :28], targets[0, :33, :28])
    valid[:, 33:], valid[:, :, 28:] = False, False
    torch.testing.assert_close(loss("bce", logits, targets, valid), wanted[None])


def test_iou_of_counted_pixels():
    """Two of three pixels said are right, and one is missed: 2 of 4, plus one each."""
    targets = torch.tensor([[[1.0, 1, 1, 0, 0, 0, 0, 0]]])
    logits = 200 * torch.tensor([[[[0.0, 1, 1, 1, 0, 0, 0, 0]]]]) - 100
    valid = torch.ones_like(targets, dtype=torch.bool)
    assert loss("iou", logits, targets, valid).item() == pytest.approx(1 - (2 + 1) / (4 + 1))
    half = loss("iou", torch.zeros(1, 1, 1, 8), targets, valid)
    assert half.item() == pytest.approx(1 - (1.5 + 1) / (4 + 3 - 1.5 + 1))


def test_ssim_is_that_of_scikit_image():
    """Far from the border; within ten pixels of it all is even, so that no rule for borders shows."""
    metrics = pytest.importorskip("skimage.metrics")
    logits, targets, valid = make(3, 60, 75)
    inside = torch.zeros_like(valid)
    inside[:, 11:-11, 11:-11] = True
    logits, targets = torch.where(inside[:, None], logits, -1.3), torch.where(inside, targets, 0)
    found = saliency_losses(logits, targets, valid, {"ssim": 2.0})["ssim"]
    for number in range(3):
        _, similarity = metrics.structural_similarity(
            logits[number, 0].double().sigmoid().numpy(),
            targets[number].double().numpy(),
            data_range=1.0,
            gaussian_weights=True,
            use_sample_covariance=False,
            full=True,
        )
        assert found[number].item() == pytest.approx(2 * (1 - similarity.mean()), abs=1e-5)


def test_ssim_at_a_border_has_the_image_alone():
    """The definition, pixel by pixel, with weights that add up to one over what there is of a window."""
    logits, targets, valid = make(1, 9, 13)
    p, y = logits[0, 0].double().sigmoid().numpy(), targets[0].double().numpy()
    rows, columns = np.mgrid[:9, :13]
    total = 0.0
    for row, column in np.ndindex(9, 13):
        down, right = abs(rows - row), abs(columns - column)
        weights = np.exp(-(down**2 + right**2) / (2 * 1.5**2)) * ((down <= 5) & (right <= 5))
        weights /= weights.sum()
        mean_p, mean_y = (weights * p).sum(), (weights * y).sum()
        var_p, var_y = (weights * (p - mean_p) ** 2).sum(), (weights * (y - mean_y) ** 2).sum()
        covariance = (weights * (p - mean_p) * (y - mean_y)).sum()
        total += (2 * mean_p * mean_y + 1e-4) * (2 * covariance + 9e-4) / (
            (mean_p**2 + mean_y**2 + 1e-4) * (var_p + var_y + 9e-4)
        )  # fmt: skip
    found = loss("ssim", logits, targets, valid)
    assert found.item() == pytest.approx(1 - total / (9 * 13), abs=1e-5)


def test_structure_is_the_formula_of_f3net():
    logits, targets, valid = make(2, 64, 80)
    y, p = targets[:, None], logits.sigmoid()
    weight = 1 + 5 * (F.avg_pool2d(y, 31, 1, 15, count_include_pad=False) - y).abs()
    assert weight.max() > 3
    crossed = F.binary_cross_entropy_with_logits(logits, y, reduction="none")
    bce = (weight * crossed).sum((1, 2, 3)) / weight.sum((1, 2, 3))
    common, union = ((weight * part).sum((1, 2, 3)) for part in (p * y, p + y - p * y))
    wanted = bce + 1 - (common + 1) / (union + 1)
    found = saliency_losses(logits, targets, valid, {"structure": 0.7})["structure"]
    torch.testing.assert_close(found, 0.7 * wanted)


def test_edges_are_where_opencv_sees_an_outline():
    cv2 = pytest.importorskip("cv2")
    targets = blobs(3, 40, 52)
    valid = torch.ones(3, 40, 52, dtype=torch.bool)
    for width in (1, 2):
        edges = edge_targets(targets, valid, width)
        assert edges.dtype == torch.float32
        for mask, found in zip(targets.numpy(), edges.numpy(), strict=True):
            kernel = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
            np.testing.assert_array_equal(found, cv2.dilate(mask, kernel) - cv2.erode(mask, kernel))
            assert 0 < found.mean() < 0.5


def test_few_edges_count_as_much_as_all_else():
    logits, targets, valid = make(2)
    edges = edge_targets(targets, valid)
    for number, found in enumerate(edge_loss(logits, edges, valid)):
        crossed = F.binary_cross_entropy_with_logits(logits[number, 0], edges[number], reduction="none")
        one, other = (crossed[edges[number] == kind].mean() for kind in (0, 1))
        torch.testing.assert_close(found, (one + other) / 2)


def test_only_what_has_a_weight():
    tensors = make()
    assert saliency_losses(*tensors, {"bce": 0.0, "iou": 2.0}).keys() == {"iou"}
    once, thrice = (saliency_losses(*tensors, dict.fromkeys(ALL, k)) for k in (1.0, 3.0))
    for name, value in once.items():
        torch.testing.assert_close(thrice[name], 3 * value)


@pytest.mark.parametrize("name", [*ALL, "edge"])
def test_autocast_and_narrow_logits_are_computed_in_full(name):
    logits, targets, valid = make()
    for given in (logits, logits.bfloat16()):
        wanted = loss(name, given.float(), targets, valid)
        with torch.autocast("cpu", torch.bfloat16):
            found = loss(name, given, targets, valid)
        assert found.dtype == torch.float32
        assert torch.equal(found, wanted)


def test_nothing_waits_for_the_device():
    """Tensors without content raise as soon as a value is asked for."""
    with FakeTensorMode():
        logits = torch.randn(2, 1, 20, 30, requires_grad=True)
        losses = everything(logits, torch.zeros(2, 20, 30), torch.ones(2, 20, 30, dtype=torch.bool))
        sum(losses.values()).sum().backward()
        with pytest.raises(RuntimeError):
            losses["bce"][0].item()
