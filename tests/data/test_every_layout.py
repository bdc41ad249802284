"""What holds for the layouts whose files are read one by one: on the toy sets, by `open_source` alone."""

import pickle
import shutil

import pytest
import torch
from layout_sets import LAYOUTS, PREPARED
from reading import fails, found_in, snapshot

from res2net_dense.data.layouts import open_source
from res2net_dense.errors import ConfigError

LINKED = [
    ("coco", "val/*0.png", "image folder"),
    ("voc-boxes", "JPEGImages/*12.jpg", "image folder"),
    ("voc-masks", "JPEGImages/*12.jpg", "image folder"),
    ("voc-masks", "SegmentationClass/*12.png", "mask folder"),
    ("image-masks", "val/images/*0.jpg", "image folder"),
    ("classes-csv", "val/arrow/*0.png", "image folder"),
    ("yolo", "images/val/*0.png", "image folder"),
    ("labelme", "val/*0.png", "image folder"),
    ("image-masks", "val/masks/*0.png", "mask folder"),
]


@pytest.fixture
def made(draw_toy, tmp_path):
    """Returns a copy of a toy set that a test may change, and its part."""

    def make(layout):
        toy, part = LAYOUTS[layout]
        root = tmp_path / "set"
        shutil.copytree(draw_toy(toy, train=12, val=10 if toy == "imagenet" else 4), root)
        PREPARED.get(layout, lambda root: None)(root)
        return root, part(root)

    return make


def opened(part):
    return open_source([part], train=True, needs=part.gives)


def equal(one, two):
    """Whether two values of a sample, or two samples, are the same."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(equal, one, two))
    return bool((one == two).all()) if hasattr(one, "all") else one == two


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_is_written_and_workers_get_the_same_samples(made, layout):
    root, part = made(layout)
    before = snapshot(root)
    folders = [path for path in (root, *root.rglob("*")) if path.is_dir()]
    for folder in folders:
        folder.chmod(0o500)
    try:
        source = opened(part)
        assert not found_in(source)
        again = pickle.loads(pickle.dumps(source))  # noqa: S301 -- what workers do
        assert len(again) == len(source) >= 4
        for index in range(len(source)):
            sample = source.sample(index)
            assert part.gives <= sample.keys()
            assert equal(again.sample(index), sample)
        with pytest.raises(IndexError):
            source.sample(len(source))
    finally:
        for folder in folders:
            folder.chmod(0o700)
    assert snapshot(root) == before


@pytest.mark.parametrize(("layout", "pattern", "what"), LINKED)
def test_links_out_of_the_folder_are_refused(made, tmp_path, layout, pattern, what):
    root, part = made(layout)
    source = opened(part)
    file = next(root.glob(pattern))
    file.rename(tmp_path / file.name)
    file.symlink_to(tmp_path / file.name)
    fails(lambda: source.sample(0), f"{file}: leads out of the {what}")
    assert any(f"{file}: leads out of the {what}" in text for text in found_in(source).values())
    file.unlink()
    file.symlink_to(file)  # a loop
    fails(lambda: source.sample(0), file.name)
    file.unlink()
    shutil.copyfile(tmp_path / file.name, file.with_name(f"own{file.suffix}"))
    file.symlink_to(file.with_name(f"own{file.suffix}"))  # inside the folder it may be a link
    assert source.sample(0)["image"].numel()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_missing_data_and_needs_say_what_to_do(layout, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    toy, part = LAYOUTS[layout]
    fails(
        lambda: opened(part("no")),
        "no data set at no",
        f"looked in {tmp_path}",
        f"toy --layout {toy} --output",
    )
    fails(
        lambda: open_source([part("no")], train=True, needs=["smell"]),
        f"is in the layout {layout}, which has no smell",
        kind=ConfigError,
    )


def test_a_missing_part_is_an_error():
    fails(lambda: open_source([], train=True), "no data set is named", kind=ConfigError)
