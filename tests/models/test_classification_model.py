"""The classifier behind the contract: against plain torch, timm's losses and the network itself."""

import logging

import numpy as np
import pytest
import torch
from networks import TINY, every_network
from torch.nn import functional

from res2net_dense.backbones import create_classifier
from res2net_dense.errors import CheckpointError, ConfigError
from res2net_dense.models.classification import build_classifier_model


def samples(number=4, size=64, classes=5):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (number, 3, size, size), dtype=torch.uint8, generator=generator)
    return [
        {"image": image, "label": index % classes, "image_id": index} for index, image in enumerate(images)
    ]


def build(classes=5, name=TINY, weights=None, **options):
    torch.manual_seed(0)
    return build_classifier_model(backbone={"name": name, "weights": weights}, num_classes=classes, **options)


def normalized(batch):
    images = torch.stack([sample["image"] for sample in batch]).float() / 255
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    return (images - mean[:, None, None]) / std[:, None, None]


def test_logits_equal_the_network_on_normalized_images():
    model, batch = build().eval(), samples()
    with torch.no_grad():
        predictions = model(batch)
        expected = model.backbone(normalized(batch))
    assert [set(prediction) for prediction in predictions] == [{"logits"}] * 4
    torch.testing.assert_close(torch.stack([p["logits"] for p in predictions]), expected)


def test_an_empty_batch_is_refused_and_one_image_is_enough():
    model = build().eval()
    with torch.no_grad():
        assert len(model(samples(1))) == 1
        with pytest.raises(RuntimeError):
            model([])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_equals_timms(smoothing):
    loss = pytest.importorskip("timm.loss").LabelSmoothingCrossEntropy(smoothing)
    model, batch = build(label_smoothing=smoothing), samples()
    model.backbone.eval()  # the running statistics stay, and both passes see the same
    labels = torch.tensor([sample["label"] for sample in batch])
    losses = model(batch)
    assert set(losses) == {"loss_cls"}
    torch.testing.assert_close(losses["loss_cls"], loss(model.backbone(normalized(batch)), labels))


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_mixing_is_random_repeatable_and_for_training_only(mixup, cutmix):
    model, batch = build(mixup_alpha=mixup, cutmix_alpha=cutmix), samples()
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.eval()
    with torch.no_grad():
        model(batch)
        torch.testing.assert_close(seen.pop(), normalized(batch))
        model.train()
        losses = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            np.random.seed(seed)
            losses.append(model(batch)["loss_cls"].item())
    assert torch.equal(seen[0], seen[1])
    assert losses[0] == losses[1] != losses[2]
    assert not torch.equal(seen[0], seen[2])


def test_mixed_targets_have_the_share_of_the_pixels():
    """White images pasted on black ones: their mean is the share, which the loss must use."""
    batch = [{"image": torch.full((3, 64, 64), 255 * n, dtype=torch.uint8), "label": n} for n in (0, 1)]
    for options in ({"mixup_alpha": 1.0}, {"cutmix_alpha": 1.0}):
        model = build(2, pixel_mean=(0, 0, 0), pixel_std=(255, 255, 255), **options)
        seen = {}
        model.backbone.register_forward_pre_hook(lambda _, i, s=seen: s.update(images=i[0]))
        model.backbone.register_forward_hook(lambda _, i, o, s=seen: s.update(logits=o))
        for seed in range(5):
            torch.manual_seed(seed)
            loss = model(batch)["loss_cls"]
            share = seen["images"].mean(dim=(1, 2, 3))
            targets = torch.stack([1 - share, share], dim=1)
            assert 0.01 < share[0] < 0.99
            torch.testing.assert_close(
                loss, functional.cross_entropy(seen["logits"], targets), atol=1e-4, rtol=1e-4
            )


def test_with_both_each_batch_takes_one():
    model = build(mixup_alpha=0.4, cutmix_alpha=1.0)
    taken = [0, 0]
    for number, mix in enumerate(model.mixing.kinds):
        model.mixing.kinds[number] = lambda *a, n=number, m=mix: taken.__setitem__(n, taken[n] + 1) or m(*a)
    model.backbone = torch.nn.Sequential(
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 5)
    )
    torch.manual_seed(0)
    for _ in range(60):
        model(samples())
    assert min(taken) > 15
    assert sum(taken) == 60


@every_network()
def test_every_network_classifies(name):
    with torch.device("meta"):
        model = build(name=name, mixup_alpha=0.2, cutmix_alpha=1.0).eval()
        assert model.backbone(torch.empty(2, 3, 64, 64)).shape == (2, 5)


def test_every_parameter_gets_a_gradient():
    """An unused parameter would stop DDP."""
    for name in (TINY, "resnet50", "se_res2net50_26w_4s", "res2net_dla60", "res2next29_6c_24w_4s"):
        with torch.device("meta"):
            model = build(name=name)
            model.backbone(torch.empty(2, 3, 64, 64)).sum().backward()
        assert [n for n, p in model.named_parameters() if p.grad is None] == [], name


def test_options_reach_the_network():
    options = {
        "name": TINY,
        "freeze_at": 2,
        "norm": "FrozenBN",
        "stage_pool": "strided",
        "dcn_stages": ["res5"],
    }
    model = build_classifier_model(backbone=options, num_classes=3)
    assert model.backbone.semantics["stage_pool"] == "strided"
    names = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert any(name.startswith("backbone.layer1") for name in names)
    assert any("conv_offset" in name for name in model.state_dict())


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A file as published: the plain network of 7 classes, statistics that are not those of the start."""
    torch.manual_seed(1)
    net = create_classifier(TINY, 7)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.weight.data.uniform_(0.5, 1.5)
    path = tmp_path_factory.mktemp("weights") / "published.pth"
    torch.save(net.state_dict(), path)
    return path, net.eval()


def test_weights_with_their_head(published):
    path, net = published
    loaded = build(7, weights=str(path)).backbone.state_dict()
    assert loaded.keys() == net.state_dict().keys()
    assert all(torch.equal(loaded[key], value) for key, value in net.state_dict().items())


@pytest.mark.parametrize(("classes", "keep"), [(5, True), (5, False), (7, False)])
def test_weights_without_their_head(published, classes, keep, caplog):
    path, net = published
    plain = build(classes).backbone
    with caplog.at_level(logging.WARNING):
        model = build(classes, weights=str(path), keep_head=keep)
    assert torch.equal(model.backbone.layer4[0].conv3.weight, net.layer4[0].conv3.weight)
    assert torch.equal(model.backbone.fc.weight, plain.fc.weight)
    assert ("7 classes" in caplog.text) == (classes == 5)


def test_wrong_weights_and_options(published, tmp_path):
    with pytest.raises(CheckpointError, match=r"published\.pth"):
        build(name="res2net50_26w_4s", weights=str(published[0]))
    with pytest.raises(CheckpointError, match=r"no\.pth"):
        build(weights=str(tmp_path / "no.pth"))
    with pytest.raises(ConfigError, match="did you mean"):
        build(name="res2net50_26w4s")
    with pytest.raises(ConfigError, match="has no option"):
        build_classifier_model(backbone={"name": "dla60", "stage_pool": "strided"}, num_classes=2)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}])
def test_class_weights_are_those_of_pytorchs_cross_entropy(options):
    weights = [1.0, 5.0, 0.0, 1.0, 2.0]
    model, batch = build(class_weights=weights, **options), samples()
    model.backbone.eval()
    labels = torch.tensor([sample["label"] for sample in batch])
    logits = model.backbone(normalized(batch))
    expected = functional.cross_entropy(logits, labels, torch.tensor(weights), **options)
    loss = model(batch)["loss_cls"]
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(x, model.backbone.fc.weight) for x in (loss, expected)))
    assert "class_weights" not in model.state_dict()
    without = model([{**sample, "label": 2} for sample in batch])["loss_cls"]  # none of them has a weight
    assert torch.isfinite(without) if options else without == 0
    with pytest.raises(ConfigError, match="2 numbers; it takes one for each of 5 classes"):
        build(class_weights=[1.0, 1.0])
