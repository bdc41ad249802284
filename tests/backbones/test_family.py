"""What timm cannot confirm as it is: dilation, small images, deformable stages, other libraries' FPN."""

import pytest
import torch
import torch.nn.functional as F
from comparison import built, difference, like_trained
from networks import TINY, TINY_RESNET, TINY_V1B, every_network, unfilled
from timm.layers import SEModule
from timm.models.res2net import Bottle2neck as TimmBottle2neck
from timm.models.resnet import Bottleneck
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN

import res2net_dense
from res2net_dense.backbones.bottle2neck import Bottle2neck
from res2net_dense.backbones.layers import DeformableConv2d
from res2net_dense.backbones.registry import ARCHITECTURES
from res2net_dense.errors import ConfigError

IMAGENET = [name for name in res2net_dense.list_backbones() if "next29" not in name]
DLA = [name for name in IMAGENET if "dla" in name]


def dilated(name, output_stride):
    """The features of one network at stride 32 and at `output_stride`."""
    # timm's shortcut of v1b is the one that keeps the meaning of the averaged one
    options = {"avg_down_dilated": "same2"} if ARCHITECTURES[name].options.get("stem") == "deep" else {}
    if not any(part in name for part in ("dla", "50", "next")):
        options["depths"] = (2, 2, 3, 2)  # the deep ones repeat one block
    plain = built(lambda: res2net_dense.create_backbone(name, **options)).eval()
    network = unfilled(
        lambda: res2net_dense.create_backbone(name, output_stride=output_stride, **options)
    ).eval()
    network.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return plain(x), network(x)


# the gate of SE averages over all positions, also those between
@every_network(name for name in IMAGENET if not name.startswith("se_"))
def test_dilation_keeps_what_the_network_computes(name):
    plain, network = dilated(name, 16)
    assert difference(network["res4"], plain["res4"]) <= 1e-5
    assert difference(network["res5"][:, :, ::2, ::2], plain["res5"]) <= 1e-5


@pytest.mark.parametrize("name", [*DLA, "resnet50", "res2net50_26w_4s"])
def test_stride_8_too(name):
    plain, network = dilated(name, 8)
    assert difference(network["res4"][:, :, ::2, ::2], plain["res4"]) <= 1e-5
    if ARCHITECTURES[name].options["scale"] == 1:  # else the mean of the last split is over closer neighbours
        assert difference(network["res5"][:, :, ::4, ::4], plain["res5"]) <= 1e-5


@pytest.mark.parametrize("name", DLA)
def test_dla_takes_any_size_and_gives_its_stem(name):
    network = res2net_dense.create_backbone(name, out_features=("stem", "res3"), freeze_at=2).eval()
    features = network(torch.randn(1, 3, 65, 99))
    assert {k: tuple(v.shape) for k, v in features.items()} == {
        "stem": (1, 32, 33, 50),
        "res3": (1, 256, 9, 13),
    }
    assert not any(key.startswith(("level4", "level5")) for key in network.state_dict())
    learns = {key.split(".")[0] for key, p in network.named_parameters() if p.requires_grad}
    assert learns == {"level3"}


def test_dla_options_act():
    options = {"drop_path_rate": 0.5, "checkpoint_activations": True, "norm_eps": 1e-3, "norm": "GN"}
    network = res2net_dense.create_backbone("res2net_dla60", zero_init_residual=False, **options)
    blocks = [module for module in network.modules() if isinstance(module, Bottle2neck)]
    assert len(blocks) == 2 + 4 + 8 + 2
    assert blocks[-1].drop_path.p == 0.5
    assert all(block.checkpointed for block in blocks)
    assert isinstance(network.level2.root.bn, nn.GroupNorm)
    network(torch.randn(2, 3, 64, 64))["res5"].sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    with pytest.raises(ConfigError, match="no option 'stage_pool'"):
        res2net_dense.create_backbone("res2net_dla60", stage_pool="strided")


class TimmCifar(nn.Module):
    """The network for small images from timm's blocks, under the published names."""

    def __init__(self, base_width, scale, cardinality, *, grouped, se):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)
        attention = SEModule if se else None
        channels = 64
        for stage in range(3):
            planes, stride = 64 * 2**stage, 1 if stage == 0 else 2
            shape = {"base_width": base_width, "cardinality": cardinality, "attn_layer": attention}
            shape["norm_layer"] = nn.BatchNorm2d
            shortcut = nn.Sequential(
                nn.Conv2d(channels, 4 * planes, 1, stride, bias=False), nn.BatchNorm2d(4 * planes)
            )
            if grouped:
                first = Bottleneck(
                    channels, planes, stride, shortcut, **shape | {"cardinality": cardinality * scale}
                )
            else:
                first = TimmBottle2neck(channels, planes, stride, shortcut, scale=scale, **shape)
            rest = [TimmBottle2neck(4 * planes, planes, scale=scale, **shape) for _ in range(2)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(first, *rest))
            channels = 4 * planes
        self.fc = nn.Linear(channels, 10)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        return self.fc(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


@pytest.mark.parametrize("form", ["grouped", "splits"])
@pytest.mark.parametrize("name", ["res2next29_6c_24w_4s", "res2next29_6c_24w_6s", "se_res2next29_6c_24w_4s"])
def test_networks_for_small_images_equal_timms_blocks(name, form):
    options = ARCHITECTURES[name].options
    shape = [options[key] for key in ("base_width", "scale", "cardinality")]
    theirs = built(lambda: TimmCifar(*shape, grouped=form == "grouped", se=name.startswith("se_"))).eval()
    ours = unfilled(lambda: res2net_dense.create_classifier(name, num_classes=10, stage_conv=form)).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 24, 20, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert difference(ours(x), theirs(x)) <= 1e-5
        features = ours.extract_features(x)
    assert {k: tuple(v.shape[1:]) for k, v in features.items()} == {
        "res2": (256, 24, 20),
        "res3": (512, 12, 10),
        "res4": (1024, 6, 5),
    }


def test_a_deformable_convolution_looks_where_its_offsets_say():
    """Zero offsets: a convolution at weight one half; whole-numbered ones move the taps, in mmcv's order."""
    torch.manual_seed(0)
    layer = DeformableConv2d(4, 6, kernel_size=3, stride=2, padding=1, groups=2)
    x = torch.randn(2, 4, 12, 14)
    plain = F.conv2d(x, layer.weight, None, 2, 1, groups=2)
    torch.testing.assert_close(layer(x), plain / 2, rtol=1e-4, atol=1e-5)

    offsets = torch.tensor([(dy, dx) for dy in (-1, 0, 2) for dx in (1, 0, -2)])  # of each tap
    with torch.no_grad():
        layer.conv_offset.bias[:18] = offsets.flatten().float()
        layer.conv_offset.bias[18:] = 20.0  # weight 1
    expected = torch.zeros_like(plain)
    padded = F.pad(x, (6, 6, 6, 6))
    for tap, (dy, dx) in enumerate(offsets.tolist()):
        top, left = 6 - 1 + tap // 3 + dy, 6 - 1 + tap % 3 + dx
        moved = padded[:, :, top : top + 12 : 2, left : left + 14 : 2]
        expected += F.conv2d(moved, layer.weight[:, :, tap // 3, tap % 3, None, None], groups=2)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [TINY, TINY_V1B, TINY_RESNET])
def test_deformable_stages(name, tmp_path):
    options = {"depths": (1, 1, 2), "dcn_stages": ("res3", "res4"), "zero_init_residual": False}
    network = res2net_dense.create_backbone(name, output_stride=8, **options)
    x = torch.randn(2, 3, 64, 64)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        loss = sum(value.float().square().mean() for value in network(x).values())
    loss.backward()
    assert all(p.grad is not None for p in network.parameters())
    optimizer.step()
    deformable = {key.split(".")[0] for key in network.state_dict() if "conv_offset" in key}
    assert deformable == {"layer2", "layer3"}
    offsets = [p for key, p in network.named_parameters() if key.endswith("conv_offset.weight")]
    assert any(p.abs().max() > 0 for p in offsets), "the taps never learn to move"

    torch.save(network.state_dict(), tmp_path / "net.pth")
    again = res2net_dense.create_backbone(name, output_stride=8, **options).eval()
    again.load_state_dict(torch.load(tmp_path / "net.pth"))
    with torch.no_grad():
        for key, value in network.eval()(x).items():
            assert again(x)[key].equal(value)


def test_deformable_stages_must_exist():
    with pytest.raises(ConfigError, match="dcn_stages is 'res5'; allowed: res2, res3, res4"):
        res2net_dense.create_backbone("res2next29_6c_24w_4s", dcn_stages=("res5",))


@pytest.mark.parametrize("name", [TINY, TINY_V1B, "res2net_dla60", "resnet50"])
def test_torchvision_takes_it_apart_in_the_right_order(name):
    network = built(lambda: res2net_dense.create_backbone(name)).eval()
    fpn = BackboneWithFPN(
        network,
        return_layers={stage: str(index) for index, stage in enumerate(network.stages)},
        in_channels_list=list(network.out_channels.values()),
        out_channels=32,
    ).eval()
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for mine, cut in zip(network(x).values(), fpn.body(x).values(), strict=True):
            assert mine.equal(cut)
        assert [value.shape[2] for value in fpn(x).values()] == [16, 8, 4, 2, 1]


def test_torchvisions_mask_rcnn_learns_on_it():
    torch.manual_seed(0)
    network = res2net_dense.create_backbone(TINY)
    channels = list(network.out_channels.values())
    fpn = BackboneWithFPN(network, {"layer1": "0", "layer2": "1", "layer3": "2", "layer4": "3"}, channels, 64)
    model = MaskRCNN(fpn, num_classes=2, min_size=64, max_size=64)
    box = torch.tensor([[8.0, 8.0, 40.0, 48.0]])
    mask = torch.zeros(1, 64, 64, dtype=torch.uint8)
    mask[0, 8:48, 8:40] = 1
    losses = model([torch.rand(3, 64, 64)], [{"boxes": box, "labels": torch.tensor([1]), "masks": mask}])
    sum(losses.values()).backward()
    assert "loss_mask" in losses
    assert all(p.grad is not None for p in network.parameters())
    prediction = model.eval()([torch.rand(3, 64, 64)])[0]
    assert {"boxes", "labels", "scores", "masks"} <= set(prediction)


def paddle_block(block, x):
    """Splits are independent, and the last is averaged (over what is there), only where the block strides."""
    out = block.bn1(block.conv1(x)).relu()
    splits, outputs = out.chunk(block.scale, 1), []
    for index, (conv, bn) in enumerate(zip(block.convs, block.bns, strict=True)):
        feed = splits[index] if index == 0 or conv.stride == (2, 2) else splits[index] + outputs[-1]
        outputs.append(bn(conv(feed)).relu())
    mean = F.avg_pool2d(splits[-1], 3, 2, 1, count_include_pad=False)
    outputs.append(splits[-1] if conv.stride == (1, 1) else mean)
    shortcut = x if block.downsample is None else block.downsample(x)
    return (block.bn3(block.conv3(torch.cat(outputs, 1))) + shortcut).relu()


def test_paddles_block():
    options = {"stage_pool": "strided", "stage_split": "strided", "pool_padding": "ignored"}
    network = like_trained(res2net_dense.create_backbone(TINY_V1B, depths=(2, 2), **options)).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = network.maxpool(network.relu(network.bn1(network.conv1(x))))
        for feature, layer in (("res2", network.layer1), ("res3", network.layer2)):
            for block in layer:
                expected = paddle_block(block, expected)
            assert difference(network(x)[feature], expected) <= 1e-5
        official = res2net_dense.create_backbone(TINY_V1B, depths=(2, 2)).eval()
        official.load_state_dict(network.state_dict())  # the same keys
        assert difference(official(x)["res2"], network(x)["res2"]) > 1e-2


def test_semantics_are_reported():
    options = {"stage_pool": "strided", "stride_in_1x1": True, "norm_eps": 0.0}
    network = res2net_dense.create_backbone(TINY, norm="FrozenBN", **options)
    assert network.semantics == {**options, "stage_split": "always"}  # it pools nowhere
    assert network.layer1[1].bns[0].eps == 0.0
    assert res2net_dense.create_backbone("resnet50").semantics == {"stride_in_1x1": False, "norm_eps": 1e-5}


def test_classifiers_give_features_too():
    x = torch.randn(1, 3, 64, 64)
    for name in (TINY, "res2next_dla60", "res2next29_6c_24w_4s"):
        classifier = built(lambda name=name: res2net_dense.create_classifier(name, num_classes=5)).eval()
        backbone = unfilled(lambda name=name: res2net_dense.create_backbone(name)).eval()
        backbone.load_state_dict(
            {k: v for k, v in classifier.state_dict().items() if not k.startswith("fc.")}
        )
        with torch.no_grad():
            features, expected = classifier.extract_features(x[:, :, ::2, ::2]), backbone(x[:, :, ::2, ::2])
            assert classifier(x[:, :, ::2, ::2]).shape == (1, 5)
        assert list(features) == list(expected)
        assert all(features[key].equal(expected[key]) for key in features)
        assert classifier.num_classes == 5


def test_dilation_rules_are_reported_where_they_act():
    options = {"dilate_first": "full", "avg_down_dilated": "same2"}
    assert res2net_dense.create_backbone(TINY_V1B, **options).dilation_rules == {}
    assert res2net_dense.create_backbone(TINY_V1B, output_stride=16, **options).dilation_rules == options
    assert res2net_dense.create_backbone("resnet50", output_stride=8).dilation_rules == {
        "dilate_first": "previous"
    }
    assert res2net_dense.create_backbone("res2net_dla60", output_stride=8).dilation_rules == {}


@pytest.mark.parametrize("name", ["res2net50_26w_4s", "res2net_dla60"])
@pytest.mark.parametrize(
    "wrong",
    [{"scale": 0}, {"scale": -1}, {"scale": 4.0}, {"base_width": 0}, {"cardinality": 0},
     {"depths": (0, 1, 1, 1)}, {"depths": "3463"}, {"depths": None},
     {"norm_eps": "1e-5"}, {"norm_eps": -1}, {"norm_eps": float("nan")}],
    ids=str,
)  # fmt: skip
def test_sizes_without_meaning_are_named(name, wrong):
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} is"):
        res2net_dense.create_backbone(name, **wrong)


def test_no_classes_are_no_classifier():
    with pytest.raises(ConfigError, match="num_classes is 0"):
        res2net_dense.create_classifier("res2net50_26w_4s", num_classes=0)
