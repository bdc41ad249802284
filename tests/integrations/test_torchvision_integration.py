"""torchvision's detectors and segmenters on networks of ours."""

import pytest
import torch
from comparison import built
from networks import TINY, TINY_V1B, every_network
from torch import nn
from torchvision.models.detection import FCOS, FasterRCNN, KeypointRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.segmentation import FCN, DeepLabV3
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from res2net_dense import create_backbone, list_backbones
from res2net_dense.errors import ConfigError
from res2net_dense.integrations.torchvision import res2net_backbone, res2net_fpn_backbone

SIZE = {"min_size": 64, "max_size": 128}
TOP = ("res3", "res4", "res5")


def pyramid(**arguments):
    return res2net_fpn_backbone(TINY, out_channels=32, **arguments)


def anchors(count):
    return AnchorGenerator(tuple((8 * 2**i,) for i in range(count)), ((0.5, 1.0, 2.0),) * count)


FOUND = {"box_score_thresh": 0.0, "box_detections_per_img": 10}  # nothing is learnt in two steps
TOPPED = {"score_thresh": 0.0, "detections_per_img": 10}
DETECTORS = {
    "FasterRCNN": lambda: FasterRCNN(pyramid(), 2, **FOUND, **SIZE),
    "MaskRCNN": lambda: MaskRCNN(pyramid(), 2, **FOUND, **SIZE),
    "KeypointRCNN": lambda: KeypointRCNN(
        pyramid(), 2, keypoint_head=KeypointRCNNHeads(32, (16, 16)),
        keypoint_predictor=KeypointRCNNPredictor(16, 3), **FOUND, **SIZE,
    ),
    "RetinaNet": lambda: RetinaNet(
        pyramid(out_features=TOP, extra_blocks=LastLevelP6P7(32, 32)), 2, anchor_generator=anchors(5),
        **TOPPED, **SIZE,
    ),
    "RetinaNet on C5": lambda: RetinaNet(
        pyramid(out_features=TOP, extra_blocks=LastLevelP6P7(128, 32)), 2, anchor_generator=anchors(5),
        **TOPPED, **SIZE,
    ),
    "FCOS": lambda: FCOS(
        pyramid(out_features=TOP, extra_blocks=LastLevelP6P7(32, 32)), 2, **TOPPED, **SIZE
    ),
}  # fmt: skip


def image(*size, seed=0):
    return torch.rand(3, *size, generator=torch.Generator().manual_seed(seed))


def target():
    mask = torch.zeros(1, 64, 96, dtype=torch.uint8)
    mask[0, 8:48, 8:40] = 1
    keypoints = torch.tensor([[[10.0, 10, 1], [20, 20, 1], [30, 40, 1]]])
    box = torch.tensor([[8.0, 8, 40, 48]])
    return {"boxes": box, "labels": torch.tensor([1]), "masks": mask, "keypoints": keypoints}


def steps(model, losses_of, body):
    """Two steps; every parameter has a gradient and the network has moved."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    before = body.conv1.weight.clone()
    for _ in range(2):
        losses = losses_of(model.train())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        assert [key for key, p in model.named_parameters() if p.grad is None] == []
    assert not before.equal(body.conv1.weight)
    return losses


@pytest.mark.parametrize("kind", DETECTORS)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_a_detector_learns_finds_and_is_scripted(kind):
    torch.manual_seed(0)
    model = DETECTORS[kind]()
    batch = [image(64, 96), image(96, 64, seed=1)]
    losses = steps(model, lambda model: model(batch, [target(), target()]), model.backbone.body)
    assert all(torch.isfinite(value) for value in losses.values())
    model.eval()
    with torch.no_grad():
        found = model(batch)
        _, scripted = torch.jit.script(model)(batch)
    assert [len(one["boxes"]) > 0 for one in found] == [True, True]
    torch.testing.assert_close(scripted, found)


SEGMENTERS = {
    "DeepLabV3": (lambda channels: DeepLabHead(channels, 2), DeepLabV3),
    "FCN": (lambda channels: FCNHead(channels, 2), FCN),
}


@pytest.mark.parametrize("kind", SEGMENTERS)
@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_a_segmenter_learns_and_is_scripted(kind, output_stride):
    torch.manual_seed(0)
    head, segmenter = SEGMENTERS[kind]
    body = res2net_backbone(TINY, {"res5": "out", "res4": "aux"}, output_stride=output_stride)
    model = segmenter(body, head(128), FCNHead(64, 2))
    x = torch.stack([image(64, 96), image(64, 96, seed=1)])
    labels = torch.randint(2, (2, 64, 96), generator=torch.Generator().manual_seed(2))

    def losses(model):
        return {name: nn.functional.cross_entropy(logits, labels) for name, logits in model(x).items()}

    assert set(steps(model, losses, body)) == {"out", "aux"}
    model.eval()
    with torch.no_grad():
        expected = model(x)
        assert expected["out"].shape == (2, 2, 64, 96)
        assert body(x)["out"].shape[2] == 64 // output_stride
        torch.testing.assert_close(torch.jit.script(model)(x), expected)


def test_the_state_of_a_resnet_is_torchvisions():
    theirs = resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=nn.BatchNorm2d).eval()
    ours = res2net_fpn_backbone("resnet50").eval()
    ours.load_state_dict(theirs.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(ours(image(64, 96)[None]), theirs(image(64, 96)[None]))


@every_network()
def test_every_network_has_its_maps_by_number(name):
    with torch.device("meta"):
        depth = len(create_backbone(name).out_features)
        features = ("res2", "res3", "res4", "res5")[:depth]
        backbone = res2net_fpn_backbone(name, out_features=features)
        maps = backbone(torch.empty(1, 3, 64, 64))
    assert list(maps) == [*map(str, range(depth)), "pool"]
    assert {value.shape[1] for value in maps.values()} == {backbone.out_channels} == {256}


@pytest.mark.parametrize("name", [TINY, TINY_V1B, "res2net_dla60"])
@pytest.mark.parametrize(
    "features", [("res2", "res5"), ("res3",), ("stem", "res4"), ("stem", "res2", "res3", "res4", "res5")]
)
def test_the_attributes_of_a_network_agree_with_few_features(name, features):
    network = built(lambda: create_backbone(name, out_features=features, output_stride=16)).eval()
    assert list(network.out_channels) == list(network.out_strides) == list(features)
    assert len(network.stages) == len(features)
    body = res2net_backbone(name, {feature: feature for feature in features}, output_stride=16).eval()
    body.load_state_dict(network.state_dict())
    x = image(64, 96)[None]
    with torch.no_grad():
        found = body(x)
        for feature, value in network(x).items():
            assert value.equal(found[feature])
            assert value.shape == (
                1, network.out_channels[feature], 64 // network.out_strides[feature],
                96 // network.out_strides[feature],
            )  # fmt: skip


def test_weights_and_options_reach_the_network(tmp_path):
    source = create_backbone(TINY)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    body = pyramid(weights=tmp_path / "w.pth", norm="FrozenBN", freeze_at=2).body
    assert body.layer3[0].conv1.weight.equal(source.layer3[0].conv1.weight)
    learns = {key.split(".")[0] for key, p in body.named_parameters() if p.requires_grad}
    assert learns == {"layer2", "layer3", "layer4"}


def test_a_wrong_feature_is_named():
    with pytest.raises(ConfigError, match="out_features is 'layer4'; allowed: stem, res2, res3, res4, res5"):
        res2net_backbone(list_backbones()[0], {"layer4": "out"})
