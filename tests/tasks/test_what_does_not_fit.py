"""What is wrong with settings and data is one line before a training: settings first, data then."""

import numpy as np
import pytest
from PIL import Image
from running import assert_one_line

from res2net_dense import train
from res2net_dense.errors import Res2NetDenseError
from res2net_dense.palette import voc_palette
from res2net_dense.tasks import get_task

CLASSIFIER, DEEPLAB = "quick/classification_res2net50", "quick/deeplabv3plus_res2net50"
FASTER, MASK = "quick/faster_rcnn_res2net50", "quick/mask_rcnn_res2net50"
SOD = "quick/sod_res2net50"
ABSENT = {
    MASK: "{images: nowhere, annotations: nowhere.json}",
    CLASSIFIER: "nowhere",
    DEEPLAB: "{root: nowhere, split: train}",
    SOD: "{root: nowhere}",
}


@pytest.mark.parametrize("config", ABSENT)
@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("backbone.name=res2net50_26w_4", ["unknown backbone", "did you mean res2net50_26w_4s"]),
        ("backbone.weights=gone.pth", ["gone.pth", "does not exist"]),
        ("backbone.weights=in2k", ["in2k", "no such tag", "in1k"]),
        ("train.precision=fp16", ["fp16", "needs CUDA"]),
        ("runtime.device=cuda:99", ["cuda"]),
        ("backbone.norm=BatchNorm", ["backbone.norm", "BatchNorm"]),
        ("runtime.device=cpu", ["no data set at nowhere", "looked in", "res2net-dense toy --layout"]),
    ],
)
def test_settings_come_before_data(config, setting, words, tmp_path):
    data = ["data.train=null", "data.val=null", f"data.train={ABSENT[config]}", f"data.val={ABSENT[config]}"]
    with pytest.raises(Res2NetDenseError) as error:
        train(config, overrides=[*data, "runtime.device=cpu", setting], output_dir=tmp_path / "run")
    assert_one_line(error, *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("config", "setting", "words"),
    [
        (DEEPLAB, "model.smp.decoder_channel=3", ["decoder_channel"]),
        (DEEPLAB, "model.output_stride=32", ["output_stride"]),
        (MASK, "model.detectron2={MODEL.NO_SUCH: 1}", ["MODEL.NO_SUCH"]),
        (MASK, "model.detectron2={MODEL.MASK_ON: false}", ["MODEL.MASK_ON", "model.arch"]),
    ],
)
def test_what_an_architecture_refuses_comes_first_too(config, setting, words):
    data = ["data.train=null", f"data.train={ABSENT[config]}", "data.val=null"]
    with pytest.raises(Res2NetDenseError) as error:
        train(config, overrides=[*data, "runtime.device=cpu", setting])
    assert_one_line(error, *words)


@pytest.mark.parametrize(
    ("config", "setting", "words"),
    [
        (CLASSIFIER, "data.train=null", ["data.train is not set"]),
        (CLASSIFIER, "data.train={toy}", ["not classes", "train"]),
        (CLASSIFIER, "data.train={toy}/val/star", ["no class folders"]),
        (CLASSIFIER, "data.val={few}", ["2 folders are not classes", "zebra"]),
        (CLASSIFIER, "data.val={none}", ["none", "10 of 10 classes have no image", "data.val"]),
        (CLASSIFIER, "data.train={few}", ["zebra", "no image"]),
        (CLASSIFIER, "data.train={lonely}", ["only the class lion", "two or more"]),
        (CLASSIFIER, "data.format=cifar10", ["data_batch_1.bin: not found", "cifar-10-batches-bin"]),
        (CLASSIFIER, "model.num_classes=7", ["model.num_classes is 7", "10 classes"]),
        (CLASSIFIER, "train.best_metric=top3", ["top3", "top1"]),
        (CLASSIFIER, "train.accumulate=3", ["accumulate"]),
        (CLASSIFIER, "backbone={{name: dla60, stage_pool: strided}}", ["has no option"]),
        (CLASSIFIER, "data.min_size_train=[5]", ["unknown key 'data.min_size_train'"]),
        (CLASSIFIER, "train.optimizer.backbone_lr_factor=0.1", ["backbone_lr_factor", "freeze_at"]),
        (DEEPLAB, "data.train=null", ["data.train is not set"]),
        (DEEPLAB, "data.train.split=trainval2", ["trainval2.txt", "trainval"]),
        (DEEPLAB, "data.train.masks=Masks", ["Masks", "mask folder"]),
        (DEEPLAB, "model.num_classes=7", ["model.num_classes is 7", "5 classes"]),
        (DEEPLAB, "data.class_names=[one]", ["only the class one", "background"]),
        (DEEPLAB, "data.class_names=[background, circle]", ["labels", "class names"]),
        (DEEPLAB, "train.best_metric=bbox/AP", ["bbox/AP", "mIoU"]),
        (FASTER, "data.train={{root: nowhere, split: x}}", ["nowhere", "looked in"]),
        (FASTER, "data.train.split=other", ["other.txt", "trainval"]),
        (FASTER, "model.num_classes=3", ["model.num_classes is 3", "4 classes"]),
        (FASTER, "data.class_names=[circle, star]", ["rectangle", "triangle"]),
        (FASTER, "train.best_metric=bbox/APs", ["bbox/APs", "bbox/AP50/star"]),
        (FASTER, "data.train.annotations=Labels", ["Labels", "annotation folder"]),
        (MASK, "data.workers=0", ["voc-boxes, which has no masks", "faster_rcnn"]),
        (SOD, "data.train=null", ["data.train is not set"]),
        (SOD, "data.train.list=train.txt", ["train.txt"]),
        (SOD, "data.train={{root: {toy}/train, masks: gt, images: images}}", ["gt", "mask folder"]),
        (SOD, "train.best_metric=mIoU", ["mIoU", "max_F"]),
    ],
)
def test_settings_that_do_not_fit_the_data(load, draw, config, setting, words, tmp_path):
    for place in ("few/zebra", "few/lion", "lonely/lion", "none/star"):
        (tmp_path / place).mkdir(parents=True)
    for place in ("few/lion", "lonely/lion"):
        Image.new("RGB", (8, 8)).save(tmp_path / place / "0.png")
    roots = {name: tmp_path / name for name in ("few", "lonely", "none")}
    settings = [setting.format(toy=draw(config), **roots)]
    if setting.startswith("data.train="):
        settings.append("data.val=null")

    def prepare():
        loaded = load(*settings, config=config)
        get_task(loaded.task).prepare(loaded)

    with pytest.raises(Res2NetDenseError) as error:
        prepare()
    assert_one_line(error, *words)


def spoil_missing(mask):
    mask.unlink()
    return ["masks are not in", mask.stem]


def spoil_size(mask):
    Image.open(mask).resize((50, 40)).save(mask)
    return ["50 x 40", mask.name]


def spoil_range(mask):
    Image.fromarray(np.array(Image.open(mask)) // 255).save(mask)
    return ["255", mask.name]


def spoil_colour(mask):
    grey = np.array(Image.open(mask))
    Image.fromarray(np.stack([grey, grey // 2, grey // 3], axis=2)).save(mask)
    return ["colour", mask.name]


@pytest.mark.parametrize("spoil", [spoil_missing, spoil_size, spoil_range, spoil_colour])
@pytest.mark.parametrize("part", ["train", "val"])
def test_wrong_masks_of_salient_objects_are_named(load, spoilt, spoil, part):
    root = spoilt(SOD)
    masks = sorted((root / part / "masks").iterdir())
    mask = next(mask for mask in masks if np.array(Image.open(mask)).max() == 255)
    words = spoil(mask)
    if spoil is spoil_missing:
        words.append(f"1 of {len(masks)}")
    with pytest.raises(Res2NetDenseError) as error:
        get_task("saliency").prepare(load(root=root, config=SOD))
    assert_one_line(error, *words)


def spoil_rgb(mask):
    Image.open(mask).convert("RGB").save(mask)
    return ["RGB", "palette", mask.name]


def spoil_labels(mask):
    labels = np.array(Image.open(mask))
    labels[0, 0] = 9
    Image.fromarray(labels).save(mask)
    return ["labels 9", "5 classes", mask.name]


def spoil_voc_size(mask):
    return [*spoil_size(mask), "96 x 96", f"{mask.stem}.jpg"]


def spoil_palette(mask):
    image, colours = Image.open(mask), voc_palette()
    colours[[0, 1]] = colours[[1, 0]]
    image.putpalette(colours.tobytes())
    image.save(mask)
    return ["palette", "colour", mask.name]


def spoil_list(mask):
    with open(mask.parents[1] / "ImageSets/Segmentation/train.txt", "a") as file:
        file.write("gone\n")
    return ["1 of 13 images", "gone", "train.txt"]


def spoil_masks(mask):
    mask.unlink()
    return ["1 of 12 masks", mask.stem]


def spoil_white(mask):
    for file in mask.parent.iterdir():
        labels = np.array(Image.open(file))
        Image.fromarray(np.where(labels > 0, 255, 0).astype(np.uint8)).save(file)
    return ["0 and 255", "write 1"]


@pytest.mark.parametrize(
    "spoil",
    [spoil_rgb, spoil_labels, spoil_voc_size, spoil_palette, spoil_list, spoil_masks, spoil_white],
)
def test_wrong_masks_of_classes_and_lists_are_named(load, spoilt, spoil):
    root = spoilt(DEEPLAB)
    words = spoil(root / "SegmentationClass/000003.png")
    with pytest.raises(Res2NetDenseError) as error:
        get_task("semantic_segmentation").prepare(load(root=root, config=DEEPLAB))
    assert_one_line(error, *words)
