"""P32: a resumed run notices changed data. An image, an annotation or a class that was changed, removed or
added since the start is named, and the run goes on with `--allow-changed-data` only.
"""

import json
import os
import re
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from layout_sets import LAYOUTS, PREPARED
from PIL import Image
from saved_runs import small_config

from res2net_dense import cli, train
from res2net_dense.data.layouts import CifarPart, CocoPart, ImageMasksPart, open_source
from res2net_dense.errors import ConfigError
from res2net_dense.files import sha256_of
from res2net_dense.tasks import data_fingerprint
from res2net_dense.tasks.data_fingerprint import FILE


@pytest.fixture
def toy(draw_toy, tmp_path):
    """A copy of the toy set of a layout."""

    def copy(layout):
        kind, part = LAYOUTS[layout]
        root = tmp_path / kind
        shutil.copytree(draw_toy(kind, train=12, val=4), root)
        PREPARED.get(layout, lambda root: None)(root)
        return root, part

    return copy


def described(part):
    """What the note has of a set."""
    source = open_source([part], train=False, needs=part.gives & {"boxes", "masks"})
    return json.loads(json.dumps(data_fingerprint._describe(source)))


def differences(before, part):
    return list(data_fingerprint._differences("data.val", before, described(part)))


def forget():
    """Files are read once in a process, and a training is resumed in another one."""
    for name, module in list(sys.modules.items()):
        if name.startswith("res2net_dense.data"):
            for value in vars(module).values():
                getattr(value, "cache_clear", lambda: None)()


def fresh(part, root):
    """The part of a set that has changed."""
    forget()
    return part(root)


def resume(config, **options):
    """Go on with a run, as another process would."""
    forget()
    return train(config, resume=True, **options)


def first_file(root, part):
    source = open_source([part(root)], train=False)
    return Path(next(source.entries()).files[0])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_knows_its_images(toy, layout, tmp_path):
    root, part = toy(layout)
    before = described(part(root))
    assert len(before["samples"]) == len(open_source([part(root)], train=False))
    assert all(size > 0 for _, _, *sizes in before["samples"] for size in sizes)
    if layout not in ("voc-masks", "image-masks", "class-folders"):
        assert all(annotation for _, annotation, *_ in before["samples"])

    # Touched, and copied to another place.
    for path in root.rglob("*"):
        os.utime(path, (1, 1))
    assert differences(before, fresh(part, root)) == []
    other = shutil.copytree(root, tmp_path / "other" / "place")
    assert differences(before, part(other)) == []

    # An image with other bytes.
    file = first_file(root, part)
    with Image.open(file) as image:
        image.save(file, image.format, comment=b"another", pnginfo=None, quality=50)
    file.write_bytes(file.read_bytes() + b"\0")
    (change,) = differences(before, fresh(part, root))
    assert "1 image of other file sizes" in change
    assert file.name in change


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


COCO = {
    "a box moved": (lambda c: c["annotations"][0]["bbox"].__setitem__(0, 1.5), "with other annotations"),
    "a point moved": (
        lambda c: c["annotations"][0]["segmentation"][0].__setitem__(0, 1.25),
        "with other annotations",
    ),
    "another class": (
        lambda c: c["annotations"][0].update(category_id=c["annotations"][0]["category_id"] % 3 + 1),
        "with other annotations",
    ),
    "one removed": (lambda c: c["annotations"].pop(), "with other annotations"),
    "one added": (
        lambda c: c["annotations"].append({**c["annotations"][0], "id": 99999}),
        "with other annot",
    ),
    "a crowd": (lambda c: c["annotations"][0].update(iscrowd=1), "with other annotations"),
    "a class renamed": (lambda c: c["categories"][0].update(name="disc"), "classes were circle.* are disc"),
    "a class added": (lambda c: c["categories"].append({"id": 77, "name": "moon"}), "and are .*moon|moon"),
    "an image removed": (
        lambda c: (
            c.update(annotations=[a for a in c["annotations"] if a["image_id"] != c["images"][-1]["id"]]),
            c["images"].pop(),
        ),
        "1 image no longer there",
    ),
    "other order": (lambda c: c["images"].reverse(), "in another order"),
    "nothing but other ids and spaces": (
        lambda c: [a.update(id=a["id"] + 7000) for a in c["annotations"]],
        None,
    ),
}


@pytest.mark.parametrize("change", COCO)
def test_coco(toy, change):
    root, part = toy("coco")
    before = described(part(root))
    edit(root / "annotations/val.json", COCO[change][0])
    found = "; ".join(differences(before, fresh(part, root)))
    if COCO[change][1] is None:
        assert found == ""
    else:
        assert re.search(COCO[change][1], found), found


def test_other_annotations(toy):
    """Of the layouts whose annotations are files of their own."""
    for layout, pattern, old, new in (
        ("voc-boxes", "Annotations/*.xml", "<xmin>", "<xmin>1"),
        ("yolo", "labels/val/*.txt", " 0.", " 0.01"),
        ("labelme", "val/*.json", '"points": [[', '"points": [[1'),
    ):
        root, part = toy(layout)
        before = described(part(root))
        names = {Path(name).stem for name, *_ in before["samples"]}
        files = [file for file in root.glob(pattern) if file.stem in names or file.suffix == ".csv"]
        file = next(file for file in files if old in file.read_text())
        file.write_text(file.read_text().replace(old, new, 1))
        (found,) = differences(before, fresh(part, root))
        assert "1 image with other annotations" in found, layout
    root, part = toy("classes-csv")
    before = described(part(root))
    lines = (root / "val/labels.csv").read_text().splitlines()
    lines[1] = f"{lines[1].partition(',')[0]},{lines[-1].rpartition(',')[2]}"
    (root / "val/labels.csv").write_text("\n".join(lines))
    found = differences(before, fresh(part, root))
    assert "1 image with other annotations" in "".join(found)
    root, part = toy("image-masks")
    before = described(part(root))
    mask = Path(next(open_source([part(root)], train=False).entries()).files[1])
    mask.write_bytes(mask.read_bytes() + b"\0")
    (found,) = differences(before, fresh(part, root))
    assert "1 image of other file sizes" in found


def test_cifar(tmp_path, monkeypatch):
    monkeypatch.setattr("res2net_dense.data.layouts.cifar.TEST_SIZE", 5)
    records = np.zeros((5, 3073), np.uint8)
    (tmp_path / "batches.meta.txt").write_text("\n".join(map(str, range(10))))
    (tmp_path / "test_batch.bin").write_bytes(records.tobytes())
    part = lambda root: CifarPart(layout="cifar10", root=str(root))  # noqa: E731
    before = described(part(tmp_path))
    for place, value in (((2, 0), 3), ((4, 77), 1)):
        records[place] = value
    (tmp_path / "test_batch.bin").write_bytes(records.tobytes())
    assert differences(before, fresh(part, tmp_path)) == ["data.val: 2 images with other annotations: #2, #4"]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A folder with a run that was stopped halfway, as it were, its config and its data."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        forget()
        train(small_config(Path()))
    for path in folder.glob("run/checkpoints/iter_0000008*"):
        path.unlink()
    return folder


@pytest.fixture
def run(stopped, tmp_path, monkeypatch):
    """Config, run folder and data, all relative to the working directory."""
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Path("small.yaml"), Path("run"), Path("data")


def test_a_resumed_run_says_what_changed(run, capsys):
    config, folder, data = run
    Image.new("RGB", (32, 32), "red").save(data / "train/down/new.png")
    (data / "train/across/1.png").unlink()
    extra = data / "val/down/0.png"
    extra.write_bytes(extra.read_bytes() + b"\0")
    note = (folder / FILE).read_bytes()
    with pytest.raises(ConfigError) as caught:
        resume(config)
    message = str(caught.value)
    assert "\n" not in message
    for words in (
        "data.train: 1 image no longer there: across/1.png",
        "data.train: 1 image new: down/new.png",
        "data.val: 1 image of other file sizes: down/0.png",
        "--allow-changed-data",
    ):
        assert words in message, message
    assert (folder / FILE).read_bytes() == note
    forget()
    assert cli.main(["train", "--config", str(config), "--resume", "--allow-changed-data"]) == 0
    assert (
        "the data have changed (--allow-changed-data): data.train: 1 image no longer"
        in capsys.readouterr().out
    )
    resume(config)  # they are those of the note now


def test_a_class_of_another_name(run):
    config, _, data = run
    for part in ("train", "val"):
        (data / part / "down").rename(data / part / "upwards")
    with pytest.raises(ConfigError, match="classes were across, down and are across, upwards"):
        resume(config)
    resume(config, allow_changed_data=True)


def test_what_is_not_a_change(run, tmp_path):
    config, _, data = run
    for path in data.rglob("*"):
        os.utime(path, (1, 1))
    other = shutil.copytree(data, tmp_path / "elsewhere")
    shutil.rmtree(data)
    places = [f"data.{part}={{layout: class-folders, root: {other / part}}}" for part in ("train", "val")]
    resume(config, overrides=places)


def test_scores_on_another_set_do_not_compare(run, tmp_path, capsys):
    """The best model and early stopping begin again, but not with a copy of the set."""
    config, folder, data = run
    place = folder / "checkpoints/iter_0000004.pt"
    content = torch.load(place)
    content["best"] = {"metric": "top1", "value": 101.0, "iteration": 2}
    torch.save(content, place)
    place.with_name(f"{place.name}.sha256").write_text(f"{sha256_of(place)}  {place.name}\n")
    copy = shutil.copytree(data / "val", tmp_path / "copy")
    for val, best in ((copy, content["best"]), (data / "train", None)):
        resume(config, overrides=[f"data.val={{layout: class-folders, root: {val}}}"])
        assert ("data.val is another set than before" in capsys.readouterr().out) == (best is None)
        last = folder / "checkpoints/iter_0000008.pt"
        assert torch.load(last)["best"] == best
        last.unlink()
    resume(config, overrides=[f"data.val={{layout: class-folders, root: {data / 'train'}}}"])
    assert torch.load(last)["best"] is None


def test_a_damaged_note(run):
    config, folder, _ = run
    for content in ("", "{", "[]", '{"format": 1, "train": 3}', "[" * 99999, '{"format": "x"}'):
        (folder / FILE).write_text(content)
        with pytest.raises(ConfigError, match=r"data\.json is damaged, so what they were is unknown"):
            resume(config)
    (folder / FILE).write_text('{"format": 99}')
    with pytest.raises(ConfigError, match="newer version: upgrade"):
        resume(config)
    (folder / FILE).write_text("")
    resume(config, allow_changed_data=True)


def test_a_run_of_an_older_version(run, capsys):
    config, folder, _ = run
    (folder / FILE).unlink()
    resume(config)
    assert "data.json: whether the data have changed is unknown" in capsys.readouterr().out
    assert (folder / FILE).is_file()


def test_it_needs_resume(run):
    with pytest.raises(ConfigError, match="goes with resume"):
        train(run[0], allow_changed_data=True)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["coco", "image-masks"])
def test_the_cost(tmp_path, layout):
    """Of 5,000 images: less than a hundredth of the start of a training."""
    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    masks.mkdir()
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    Image.new("RGB", (64, 64)).save(tmp_path / "one.jpg")
    Image.fromarray(np.eye(64, dtype=np.uint8) * 255).save(tmp_path / "one.png")
    for number in range(5000):
        os.link(tmp_path / "one.jpg", images / f"{number:05}.jpg")
        os.link(tmp_path / "one.png", masks / f"{number:05}.png")
        content["images"].append({"id": number, "file_name": f"{number:05}.jpg", "height": 64, "width": 64})
        for place in range(7):
            content["annotations"].append({
                "id": number * 7 + place, "image_id": number, "category_id": 1, "iscrowd": 0, "area": 16,
                "bbox": [4, 4, 4, 4], "segmentation": [[4, 4, 8, 4, 8, 8, 4, 8] * 3],
            })  # fmt: skip
    (tmp_path / "coco.json").write_text(json.dumps(content))
    if layout == "coco":
        part = CocoPart(annotations=str(tmp_path / "coco.json"), images=str(images))
    else:
        part = ImageMasksPart(root=str(tmp_path), images="images", masks="masks")
    source = open_source([part], train=True, needs=["boxes", "masks"] if layout == "coco" else ())
    times = []
    for _ in range(5):
        start = time.perf_counter()
        text = json.dumps(data_fingerprint._describe(source), separators=(",", ":"))
        (tmp_path / "data.json").write_text(text)
        times.append(time.perf_counter() - start)
    print(f"{layout}: {min(times) * 1000:.0f} ms, {len(text) / 1000:.0f} KB")
    assert min(times) < 0.15
