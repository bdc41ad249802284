"""In every task the errors that the config alone shows come before those of the data."""

import pytest
from running import ROOT, assert_one_line

from res2net_dense import train
from res2net_dense.errors import Res2NetDenseError

CONFIGS = {
    "detection": ("mask_rcnn_res2net50", "{images: nowhere, annotations: nowhere.json}"),
    "classification": ("classification_res2net50", "nowhere"),
    "semantic_segmentation": ("deeplabv3plus_res2net50", "{root: nowhere, split: train}"),
    "saliency": ("sod_res2net50", "{root: nowhere}"),
}


@pytest.mark.parametrize("task", CONFIGS)
@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("backbone.name=res2net50_26w_4", ["unknown backbone", "did you mean res2net50_26w_4s"]),
        ("backbone.weights=gone.pth", ["gone.pth", "does not exist"]),
        ("backbone.weights=in2k", ["in2k", "no such tag", "in1k"]),
        ("train.precision=fp16", ["fp16", "needs CUDA"]),
        ("runtime.device=cuda:99", ["cuda"]),
        ("backbone.norm=BatchNorm", ["backbone.norm", "BatchNorm"]),
        (None, ["no data set at nowhere", "res2net-dense toy --layout"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_settings_come_before_data(task, setting, words, tmp_path):
    name, data = CONFIGS[task]
    overrides = [
        "data.train=null", "data.val=null", f"data.train={data}", f"data.val={data}", "runtime.device=cpu",
        f"runtime.output_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    with pytest.raises(Res2NetDenseError) as error:
        train(ROOT / f"configs/quick/{name}.yaml", overrides=[*overrides, *([setting] if setting else [])])
    assert_one_line(error, *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("task", "setting", "words"),
    [
        ("semantic_segmentation", "model.smp.decoder_channel=3", ["decoder_channel"]),
        ("semantic_segmentation", "model.output_stride=32", ["output_stride"]),
        ("detection", "model.detectron2={MODEL.NO_SUCH: 1}", ["MODEL.NO_SUCH"]),
        ("detection", "model.detectron2={MODEL.MASK_ON: false}", ["MODEL.MASK_ON", "model.arch"]),
    ],
)
def test_what_an_architecture_refuses_comes_first_too(task, setting, words):
    name, data = CONFIGS[task]
    overrides = ["data.train=null", f"data.train={data}", "data.val=null", "runtime.device=cpu", setting]
    with pytest.raises(Res2NetDenseError) as error:
        train(ROOT / f"configs/quick/{name}.yaml", overrides=overrides)
    assert_one_line(error, *words)
