"""The losses of label maps: batches without a label first, then against PyTorch and smp."""

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F

from res2net_dense.errors import ConfigError
from res2net_dense.models.segmentation_losses import LOSSES, SegmentationCriterion

EVERY = pytest.mark.parametrize("name", LOSSES)


def made(classes=4, present=None, seed=0, ignored=0.2):
    """Logits, and targets of the first `present` classes, some of them ignored."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, classes, 13, 17, generator=generator)
    targets = torch.randint(0, present or classes, (2, 13, 17), generator=generator)
    targets[torch.rand(targets.shape, generator=generator) < ignored] = 255
    return logits.requires_grad_(), targets


def loss_of(name, logits, targets, **options):
    return SegmentationCriterion({name: 1.0}, **options)(logits, targets)[name]


def assert_same(ours, reference, logits):
    """Equal values and gradients."""
    torch.testing.assert_close(ours, reference)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (ours, reference)))


@EVERY
@pytest.mark.parametrize("weights", [None, [0.0, 1.0, 2.0, 1.0]])
def test_without_a_label_there_is_no_loss_and_no_gradient(name, weights):
    logits, targets = made()
    loss = loss_of(name, logits, torch.full_like(targets, 255), class_weights=weights)
    assert loss.shape == ()
    assert loss == 0
    assert (torch.autograd.grad(loss, logits)[0] == 0).all()


@EVERY
def test_weights_that_leave_nothing_give_no_loss(name):
    logits, targets = made(present=1)
    loss = loss_of(name, logits, targets, class_weights=[0.0, 1.0, 1.0, 1.0])
    assert loss == 0
    assert (torch.autograd.grad(loss, logits)[0] == 0).all()


@EVERY
def test_ignored_pixels_have_no_influence(name):
    logits, targets = made()
    ignored = (targets == 255)[:, None].expand_as(logits)
    changed = torch.where(ignored, 50.0, logits.detach()).requires_grad_()
    loss = loss_of(name, changed, targets)
    torch.testing.assert_close(loss, loss_of(name, logits, targets))
    assert (torch.autograd.grad(loss, changed)[0][ignored] == 0).all()


@EVERY
@pytest.mark.parametrize("present", [1, 3])
@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
def test_losses_are_finite_where_classes_are_missing(name, present, scale):
    logits, targets = made(present=present)
    logits = (scale * logits.detach()).requires_grad_()
    loss = loss_of(name, logits, targets, focal_gamma=0.5)
    assert torch.isfinite(loss)
    assert loss >= 0
    assert torch.isfinite(torch.autograd.grad(loss, logits)[0]).all()


@EVERY
def test_the_truth_has_no_loss(name):
    _, targets = made()
    logits = 100 * F.one_hot(targets % 255, 4).permute(0, 3, 1, 2).float()
    assert loss_of(name, logits, targets) < 1e-6


@EVERY
def test_half_precision_makes_no_difference(name):
    logits, targets = made()
    half = logits.detach().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(name, half, targets)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, loss_of(name, half.float(), targets))


@EVERY
def test_two_classes_are_enough(name):
    logits, targets = made(classes=2)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(60):
        optimizer.zero_grad()
        loss_of(name, logits, targets).backward()
        optimizer.step()
    assert (logits.argmax(1) == targets)[targets != 255].float().mean() > 0.99


@pytest.mark.parametrize("weights", [None, [0.0, 1.0, 2.5, 1.0]])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_pytorchs(weights, smoothing):
    logits, targets = made()
    ours = loss_of("cross_entropy", logits, targets, class_weights=weights, label_smoothing=smoothing)
    tensor = None if weights is None else torch.tensor(weights)
    reference = F.cross_entropy(logits, targets, tensor, ignore_index=255, label_smoothing=smoothing)
    assert_same(ours, reference, logits)


@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 2.5, 1.0]])
def test_focal_without_an_exponent_is_cross_entropy(weights):
    logits, targets = made()
    assert_same(
        loss_of("focal", logits, targets, focal_gamma=0.0, class_weights=weights),
        loss_of("cross_entropy", logits, targets, class_weights=weights),
        logits,
    )


@pytest.mark.parametrize("gamma", [0.5, 2.0, 5.0])
def test_focal_of_two_classes_is_smps_of_their_difference(gamma):
    """A sigmoid of the difference of two logits is their softmax; of more classes smp's is another loss."""
    logits, targets = made(classes=2)
    reference = smp.losses.FocalLoss("binary", gamma=gamma, ignore_index=255)
    assert_same(
        loss_of("focal", logits, targets, focal_gamma=gamma),
        reference(logits[:, 1] - logits[:, 0], targets),
        logits,
    )


@pytest.mark.parametrize("present", [4, 3, 1])
def test_dice_is_smps_over_the_classes_that_are_there(present):
    """smp's mean has a zero for each other class."""
    logits, targets = made(present=present)
    reference = smp.losses.DiceLoss("multiclass", ignore_index=255)(logits, targets)
    assert_same(loss_of("dice", logits, targets), reference * 4 / present, logits)


def test_weighted_dice_is_smps():
    logits, targets = made()
    weights = [0.5, 1.0, 2.5, 0.0]
    reference = smp.losses.DiceLoss("multiclass", ignore_index=255, class_weights=weights)(logits, targets)
    assert_same(loss_of("dice", logits, targets, class_weights=weights), reference, logits)


@pytest.mark.parametrize("present", [4, 3, 1])
@pytest.mark.parametrize("ignored", [0.0, 0.4])
def test_lovasz_is_smps(present, ignored):
    logits, targets = made(present=present, ignored=ignored)
    reference = smp.losses.LovaszLoss("multiclass", ignore_index=255)(logits, targets)
    assert_same(loss_of("lovasz", logits, targets), reference, logits)


def test_weighted_lovasz_is_the_mean_of_smps_classes():
    logits, targets = made()
    weights = torch.tensor([0.5, 1.0, 2.5, 0.0])
    keep = targets != 255
    pixels = logits.softmax(1).movedim(1, -1)[keep]
    single = [
        smp.losses.lovasz._lovasz_softmax_flat(pixels, targets[keep], classes=[label]) for label in range(4)
    ]
    reference = (torch.stack(single) * weights).sum() / weights.sum()
    assert_same(loss_of("lovasz", logits, targets, class_weights=weights.tolist()), reference, logits)


def test_a_hard_lovasz_is_1_minus_iou():
    """The extension agrees with the function that it extends."""
    _, targets = made(ignored=0.1)
    guess = torch.randint(0, 4, targets.shape, generator=torch.Generator().manual_seed(1))
    logits = 200 * F.one_hot(guess, 4).permute(0, 3, 1, 2).float()
    keep = targets != 255
    ious = [
        ((guess == c) & (targets == c) & keep).sum() / (((guess == c) | (targets == c)) & keep).sum()
        for c in range(4)
    ]
    torch.testing.assert_close(loss_of("lovasz", logits, targets), 1 - torch.stack(ious).mean())


def test_weights_scale_their_losses_and_0_is_none():
    logits, targets = made()
    found = SegmentationCriterion({"cross_entropy": 0.5, "dice": 0.0, "lovasz": 2.0})(logits, targets)
    assert set(found) == {"cross_entropy", "lovasz"}
    torch.testing.assert_close(found["lovasz"], 2 * loss_of("lovasz", logits, targets))


def test_a_wrong_name_has_a_hint():
    with pytest.raises(ConfigError, match=r"no loss 'focall'; did you mean focal\?"):
        SegmentationCriterion({"focall": 1.0})


def test_a_rare_class_is_found_with_each_remedy():
    """A linear network on pixels of which one in fifty is of class 1, and whose two features overlap."""
    generator = torch.Generator().manual_seed(0)
    targets = (torch.rand(1, 50, 50, generator=generator) < 0.02).long()
    images = torch.randn(1, 2, 50, 50, generator=generator) + 1.5 * targets[:, None]

    def recall(losses, **options):
        torch.manual_seed(0)
        network = torch.nn.Conv2d(2, 2, 1)
        criterion = SegmentationCriterion(losses, **options)
        optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
        for _ in range(60):
            optimizer.zero_grad()
            sum(criterion(network(images), targets).values()).backward()
            optimizer.step()
        return float((network(images).argmax(1) == 1)[targets == 1].float().mean())

    plain = recall({"cross_entropy": 1.0})
    assert plain < 0.3
    assert recall({"cross_entropy": 1.0}, class_weights=[1.0, 40.0]) > 0.7
    for name in ("dice", "lovasz"):
        assert recall({name: 1.0}) > plain + 0.1, name
    assert recall({"focal": 1.0}, class_weights=[1.0, 10.0]) > plain + 0.1
