"""The outputs of the libraries themselves, through our converter, both ways; and their names written down
where one is not installed.
"""

import pytest
import torch

from res2net_dense.backbones import create_backbone, create_classifier
from res2net_dense.convert import read_checkpoint, to_dialect

IMAGE = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def trained(network, seed=0):
    """A network in evaluation whose norms and statistics are no longer the identity."""
    generator = torch.Generator().manual_seed(seed)
    for key, value in network.state_dict().items():
        if key.endswith("running_var") or (value.dim() == 1 and key.endswith("weight")):
            value.copy_(torch.rand(value.shape, generator=generator) / 2 + 0.75)
        elif key.endswith("running_mean") or value.dim() == 1:
            value.copy_(torch.randn(value.shape, generator=generator) / 10)
    return network.eval()


def close(ours, theirs):
    assert theirs.abs().max() > 0
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


SHALLOW = (1, 1, 1, 1)
"""One block a stage: a quarter of the bytes to write."""


def same_both_ways(theirs, name, tmp_path, dialect, outputs=None, **options):
    """Their file in our network gives their outputs, and ours loads into theirs strictly and bit-equal."""
    before = {key: value.clone() for key, value in theirs.state_dict().items()}
    torch.save(before, tmp_path / "theirs.pth")
    read = read_checkpoint(tmp_path / "theirs.pth")
    assert (read.name, read.options) == (name, options)
    assert read.report.matched == read.report.total
    ours = create_classifier(read.name, read.report.structure.num_classes, **read.options).eval()
    ours.load_state_dict(read.state_dict)
    with torch.no_grad():
        close(ours(IMAGE), theirs(IMAGE) if outputs is None else outputs(IMAGE))
    theirs.load_state_dict(to_dialect(ours.state_dict(), dialect))
    assert all(value.equal(before[key]) for key, value in theirs.state_dict().items())


NAMES = {
    "res2next50": "res2next50",
    "res2net50d": "res2net50_v1b_26w_4s",
    "dla60_res2net": "res2net_dla60",
    "res2net50_26w_4s": "res2net50_26w_4s",
    "res2net50_48w_2s": "res2net50_48w_2s",
    "res2net50_14w_8s": "res2net50_14w_8s",
    "res2net50_26w_6s": "res2net50_26w_6s",
    "res2net50_26w_8s": "res2net50_26w_8s",
    "res2net101_26w_4s": "res2net101_26w_4s",
    "res2net101d": "res2net101_v1b_26w_4s",
    "dla60_res2next": "res2next_dla60",
    "dla60": "dla60",
    "dla60x": "dla60x",
    "resnet50": "resnet50",
    "resnet101": "resnet101",
    "seresnet50": "se_resnet50",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_timm(tmp_path, name):
    timm = pytest.importorskip("timm")
    same_both_ways(trained(timm.create_model(name)), NAMES[name], tmp_path, "timm")


@pytest.mark.parametrize("name", ["res2next50", "res2net50d", "seresnet50"])
def test_timm_with_fewer_blocks(tmp_path, name):
    timm = pytest.importorskip("timm")
    theirs = trained(timm.create_model(name, layers=SHALLOW, num_classes=10))
    same_both_ways(theirs, NAMES[name], tmp_path, "timm", depths=SHALLOW)


def test_every_res2net_of_timm_is_in_the_list():
    timm = pytest.importorskip("timm")
    theirs = {*timm.list_models(module="res2net"), *timm.list_models("dla60*", module="dla")}
    theirs.remove("dla60x_c")  # of other channels
    assert theirs == {name for name in NAMES if "res2" in name or name.startswith("dla60")}


def test_timms_dla_takes_the_official_names_without_the_three_projections(tmp_path):
    """timm's own code for those files leaves out exactly what we do."""
    timm = pytest.importorskip("timm")
    theirs = trained(timm.create_model("dla60_res2next"))
    official = to_dialect(theirs.state_dict(), "dla")
    missing, unexpected = timm.create_model("dla60_res2next").load_state_dict(official, strict=False)
    assert missing == []
    torch.save(official, tmp_path / "official.pth")
    read = read_checkpoint(tmp_path / "official.pth")
    assert read.report.dialect == "dla"
    (dropped,) = read.report.dropped
    assert dropped.count == len(unexpected) == 18
    assert dropped.group == "level3.project, level4.project, level4.tree1.project"
    ours = create_classifier(read.name).eval()
    ours.load_state_dict(read.state_dict)
    with torch.no_grad():
        close(ours(IMAGE), theirs(IMAGE))


@pytest.mark.parametrize(("encoder", "name"), [("tu-res2net50d", "res2net50_v1b_26w_4s")])
def test_segmentation_models_pytorch(tmp_path, encoder, name):
    smp = pytest.importorskip("segmentation_models_pytorch")
    theirs = smp.Unet(encoder, encoder_weights=None, decoder_channels=(32, 16, 16, 8, 8), layers=SHALLOW)
    trained(theirs)
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "unet.pth")
    read = read_checkpoint(tmp_path / "unet.pth")
    assert (read.name, read.report.dialect, read.report.prefix) == (name, "smp", "encoder.model.")
    assert read.options["depths"] == SHALLOW
    assert {item.group for item in read.report.dropped} == {"decoder", "segmentation_head"}
    ours = create_backbone(read.name, **read.options).eval()
    ours.load_state_dict(read.state_dict)
    with torch.no_grad():
        for a, b in zip(ours(IMAGE).values(), theirs.encoder(IMAGE)[2:], strict=True):
            close(a, b)
    back = to_dialect(ours.state_dict(), "smp")
    assert set(back) == {key for key in theirs.state_dict() if key.startswith("encoder.")}


def test_torchvision(tmp_path):
    torchvision = pytest.importorskip("torchvision")
    theirs = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [*SHALLOW], num_classes=10)
    same_both_ways(trained(theirs), "resnet50", tmp_path, "torchvision", depths=SHALLOW)


@pytest.mark.parametrize(
    ("depth", "width", "scale", "deep", "name"),
    [
        (50, 26, 4, False, "res2net50_26w_4s"),
        (50, 26, 4, True, "res2net50_v1b_26w_4s"),
        pytest.param(50, 14, 8, False, "res2net50_14w_8s", marks=pytest.mark.slow),
        pytest.param(101, 26, 4, False, "res2net101_26w_4s", marks=pytest.mark.slow),
        pytest.param(101, 26, 4, True, "res2net101_v1b_26w_4s", marks=pytest.mark.slow),
    ],
)
def test_mmpretrain(tmp_path, depth, width, scale, deep, name):
    models = pytest.importorskip("mmpretrain.models")
    backbone = {
        "type": "Res2Net", "depth": depth, "base_width": width, "scales": scale,
        "deep_stem": deep, "avg_down": deep,
    }  # fmt: skip
    head = {"type": "LinearClsHead", "num_classes": 10, "in_channels": 2048}
    neck = {"type": "GlobalAveragePooling"}
    theirs = models.build_classifier(
        {"type": "ImageClassifier", "backbone": backbone, "neck": neck, "head": head}
    )
    trained(theirs)
    same_both_ways(theirs, name, tmp_path, "mmpretrain", lambda x: theirs.head(theirs.extract_feat(x)))


def test_holocron(tmp_path):
    classification = pytest.importorskip("holocron.models.classification")
    theirs = trained(classification.res2net50_26w_4s(num_classes=10))
    same_both_ways(theirs, "res2net50_26w_4s", tmp_path, "holocron")


LEAVES = {"weight": 1, "bias": 1, "running_mean": 1, "running_var": 1, "num_batches_tracked": 0}
NAMES_IN_BLOCK = {
    "mmpretrain": ("backbone.layer{k}.{j}.", "conv1 bn1", "convs.{i} bns.{i}", "conv3 bn3"),
    "holocron": (
        "features.{f}.{j}.",
        "conv.0 conv.1",
        "conv.3.conv.{i}.0 conv.3.conv.{i}.1",
        "conv.4 conv.5",
    ),
}
STEMS = {
    "mmpretrain": [("backbone.conv1 backbone.bn1", 64, 3, 7)],
    "mmpretrain, deep": [
        (f"backbone.stem.{i}.conv backbone.stem.{i}.bn", outputs, inputs, 3)
        for i, (inputs, outputs) in enumerate([(3, 32), (32, 32), (32, 64)])
    ],
    "holocron": [("features.0 features.1", 64, 3, 7)],
}
HEADS = {"mmpretrain": ("head.fc", 1000), "holocron": ("head", 10)}


def shapes_of(dialect, depths, width, scale, deep):
    """All names and shapes of a library's network, from its source code and not from ours."""
    head, classes = HEADS[dialect]
    shapes = {f"{head}.weight": (classes, 2048), f"{head}.bias": (classes,)}

    def add(names, outputs, inputs, side):
        conv, norm = names.split()
        shapes[f"{conv}.weight"] = (outputs, inputs, side, side)
        shapes.update({f"{norm}.{leaf}": (outputs,) * count for leaf, count in LEAVES.items()})

    for part in STEMS[dialect + ", deep" * deep]:
        add(*part)
    inputs = 64
    for stage, depth in enumerate(depths):
        split, outputs = 2**stage * width, 256 * 2**stage
        for block in range(depth):
            start, first, splits, last = NAMES_IN_BLOCK[dialect]
            start = start.format(k=stage + 1, f=stage + 4, j=block)
            parts = [(first, split * scale, inputs, 1), (last, outputs, split * scale, 1)]
            parts += [(splits.format(i=i), split, split, 3) for i in range(scale - 1)]
            if block == 0:
                parts.append((f"downsample.{int(deep)} downsample.{1 + deep}", outputs, inputs, 1))
            for names, *sizes in parts:
                add(" ".join(start + name for name in names.split()), *sizes)
            inputs = outputs
    return shapes


@pytest.mark.parametrize(
    ("dialect", "depths", "width", "scale", "deep", "name"),
    [
        ("mmpretrain", (3, 4, 6, 3), 14, 8, False, "res2net50_14w_8s"),
        ("mmpretrain", (3, 4, 23, 3), 26, 4, False, "res2net101_26w_4s"),
        ("mmpretrain", (3, 4, 6, 3), 26, 4, True, "res2net50_v1b_26w_4s"),
        ("holocron", (3, 4, 6, 3), 26, 4, False, "res2net50_26w_4s"),
    ],
)
def test_names_and_shapes_written_down(read, dialect, depths, width, scale, deep, name):
    shapes = shapes_of(dialect, depths, width, scale, deep)
    tensors = {
        key: torch.zeros((), dtype=torch.float16 if shape else torch.int64).expand(shape)
        for key, shape in shapes.items()
    }
    found = read({"state_dict": tensors})
    assert (found.name, found.options, found.report.dialect) == (name, {}, dialect)
    assert found.report.dropped == []
    back = to_dialect(found.state_dict, dialect)
    assert {key: tuple(value.shape) for key, value in back.items()} == shapes
    if dialect == "holocron":  # its own count
        assert sum(v.numel() for k, v in back.items() if k.endswith(("weight", "bias"))) == 23_670_610
