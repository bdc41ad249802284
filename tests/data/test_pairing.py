"""Masks whose names are not those of their images: what is beyond doubt is paired, nothing else is."""

import pytest

from res2net_dense.data.layouts.listing import Files
from res2net_dense.data.layouts.pairing import index_both, pair_up


def listed(folder, files):
    return Files(folder, {file.rpartition(".")[0]: file for file in files}, [])


def paired(folder, images, masks):
    """The image of each mask, and the line about it."""
    of_images = listed(folder / "images", images)
    found, line = pair_up(of_images, listed(folder / "masks", masks))
    return {path: of_images.by_stem.get(stem) for stem, path in found.by_stem.items()}, line


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (["p0.jpg", "p1.jpg", "p2.jpg"], ["p0_mask.png", "p1_mask.png", "p2_mask.png"]),
        (["p0.jpg", "p1.jpg"], ["p0-gt.png", "p1-gt.png"]),
        (["p0.jpg"], ["p0_segmentation.png"]),
        (["p0.jpg"], ["p0.mask.png"]),
        (["a.jpg", "b.jpg"], ["a.jpg.png", "b.jpg.png"]),
        (["a.jpg", "b.jpg"], ["aMask.png", "bMask.png"]),
        (["a.jpg", "b.jpg"], ["mask_a.png", "mask_b.png"]),
        (["t/a.jpg", "v/a.jpg"], ["t/gt-a.png", "v/gt-a.png"]),
        (["1_sat.jpg", "2_sat.jpg", "10_sat.jpg"], ["1_mask.png", "2_mask.png", "10_mask.png"]),
        (["img_1.jpg", "img_2.jpg", "img_12.jpg"], ["label_1.png", "label_2.png", "label_12.png"]),
        (["IMG_1.JPG", "IMG_2.JPG"], ["img_1.png", "img_2.png"]),
        (["caf\u00e9.jpg", "b.jpg"], ["cafe\u0301.png", "b.png"]),
        (["train/a.jpg", "train/b.jpg"], ["a.png", "b.png"]),
    ],
)
def test_names_that_differ_by_one_rule_are_paired(tmp_path, images, masks):
    found, line = paired(tmp_path, images, masks)
    assert list(found.items()) == list(zip(masks, images, strict=True))
    odd = next(mask for mask, image in found.items() if mask[:-4] != image[:-4])
    assert odd in line
    assert found[odd] in line


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (["a.jpg", "b.jpg"], ["a_mask.png", "b_gt.png"]),  # two additions
        (["1.jpg", "2.jpg"], ["10.png", "20.png"]),  # parts of numbers
        (["a.jpg", "a_1.jpg"], ["a_1_mask.png"]),  # one mask of two images
        (["a.jpg"], ["ab.png"]),
        (["A.jpg", "B.jpg"], ["\u00e0_mask.png"]),
        (["cat_1.jpg", "cat_2.jpg"], ["dog_1.png", "dog_2.png"]),  # too few to tell
        (["cat_1.jpg", "cat_2.jpg", "cat_3.jpg"], ["dog_7.png", "dog_8.png", "dog_9.png"]),
        (["x/a.jpg", "y/a.jpg"], ["a.png"]),
        (["A.jpg", "a.jpg"], ["\u00e0.png"]),
    ],
)
def test_nothing_is_paired_in_doubt(tmp_path, images, masks):
    found, line = paired(tmp_path, images, masks)
    assert set(found.values()) == {None}
    assert line == ""


def test_equal_names_stay_as_they_are(tmp_path):
    images, masks = ["a.jpg", "a_mask.jpg"], ["a.png", "a_mask.png"]
    assert paired(tmp_path, images, masks) == ({"a.png": "a.jpg", "a_mask.png": "a_mask.jpg"}, "")
    assert paired(tmp_path, ["a.jpg"], ["a.png", "b_mask.png"])[1] == ""


def test_a_single_mask_with_an_addition_may_be_a_copy(tmp_path):
    found, line = paired(tmp_path, ["a.jpg", "b.jpg", "c.jpg"], ["a_old.png", "b.png", "c.png"])
    assert found == {"a_old.png": None, "b.png": "b.jpg", "c.png": "c.jpg"}
    assert line == ""


def test_a_few_masks_without_an_image_do_not_hide_the_rule(tmp_path):
    found, line = paired(tmp_path, ["a.jpg", "b.jpg"], ["a_mask.png", "b_mask.png", "c_mask.png"])
    assert found == {"a_mask.png": "a.jpg", "b_mask.png": "b.jpg", "c_mask.png": None}
    assert line


def stems(parts):
    return [sorted(part.by_stem) for part in parts]


def fill(folder, names):
    for name in names.split():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_images_and_masks_of_one_folder(tmp_path):
    fill(tmp_path / "jpg", "a.jpg b.jpg a.png b.png")
    assert stems(index_both(tmp_path / "jpg", tmp_path / "jpg")) == [["a", "b"], ["a", "b"]]
    fill(tmp_path / "added", "a.jpg b.jpg a_mask.png b_mask.png notes.txt")
    assert stems(index_both(tmp_path / "added", tmp_path / "added")) == [["a", "b"], ["a_mask", "b_mask"]]
    fill(tmp_path / "png", "a.png a_1.png b.png a_gt.png a_1_gt.png b_gt.png")
    assert stems(index_both(tmp_path / "png", tmp_path / "png")) == [
        ["a", "a_1", "b"],
        ["a_1_gt", "a_gt", "b_gt"],
    ]


def test_masks_in_a_folder_of_the_images_are_not_images(tmp_path):
    fill(tmp_path, "a.jpg b.jpg masks/a.png masks/b.png")
    assert stems(index_both(tmp_path, tmp_path / "masks")) == [["a", "b"], ["a", "b"]]
