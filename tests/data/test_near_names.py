"""Names that no file has: what is beyond doubt is found, all else gets a hint, and nothing outside is."""

import time
import unicodedata
from pathlib import Path

import pytest

from res2net_dense.data.layouts.listing import find_near, near_files
from res2net_dense.data.layouts.near_names import NearFiles

FILES = [
    "IMG_1.JPG", "café.png", "my cat.jpg", "sub/deep.jpg", "one/twice.jpg", "two/twice.jpg", "scan.jpeg",
    "only.tif", "both.png", "both.bmp", "x_jpg.rf.31be.jpg", "a/b/c.jpg", "img_2_mask.png", "literal%20.jpg",
]  # fmt: skip


def fill(folder, files):
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(b"x")


@pytest.fixture
def images(tmp_path):
    fill(tmp_path / "images", FILES)
    return tmp_path / "images"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("img_1.jpg", "IMG_1.JPG"),
        ("IMG_1.jpg", "IMG_1.JPG"),
        ("IMG_1", "IMG_1.JPG"),
        (unicodedata.normalize("NFD", "café.png"), "café.png"),
        ("CAFÉ.PNG", "café.png"),
        ("my%20cat.jpg", "my cat.jpg"),
        ("my%2520cat.jpg", "my cat.jpg"),
        ("literal .jpg", "literal%20.jpg"),
        ("sub\\deep.jpg", "sub/deep.jpg"),
        ("./sub/deep.jpg", "sub/deep.jpg"),
        ("C:\\data\\sub\\deep.jpg", "sub/deep.jpg"),
        ("/home/me/images/IMG_1.JPG", "IMG_1.JPG"),
        ("../images/IMG_1.JPG", "IMG_1.JPG"),
        ("../../other/sub/deep.jpg", "sub/deep.jpg"),
        ("%2e%2e/nowhere/IMG_1.JPG", "IMG_1.JPG"),
        ("https://host.example/x/sub/deep.jpg", "sub/deep.jpg"),
        ("/data/local-files/?d=sub/deep.jpg", "sub/deep.jpg"),
        ("deep.jpg", "sub/deep.jpg"),
        ("train/IMG_1.JPG", "IMG_1.JPG"),
        ("b/c.jpg", "a/b/c.jpg"),
        ("x/a/b/c.jpg", "a/b/c.jpg"),
        ("two/twice.jpg", "two/twice.jpg"),
        ("TWO/twice.JPG", "two/twice.jpg"),
        ("scan.jpg", "scan.jpeg"),
        ("only.png", "only.tif"),
        (" only.tif ", "only.tif"),
        ("x_jpg.rf.31be", "x_jpg.rf.31be.jpg"),
    ],
)
def test_a_file_that_is_meant_beyond_doubt_is_found(images, name, meant):
    assert find_near(images, name) == (meant, "")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("twice.jpg", "there are 2 such files: one/twice.jpg, two/twice.jpg"),
        ("both.jpg", "there are 2 such files"),
        ("other/deep.jpg", "did you mean sub/deep.jpg?"),
        ("img_2.jpg", "there is img_2_mask.png"),
        ("1a2b3c4d-IMG_1.JPG", "did you mean IMG_1.JPG?"),
        ("my_cat.jpg", "did you mean my cat.jpg?"),
        ("nothing like it.jpg", ""),
        ("IMG_12.jpg", ""),  # another number is another image
        ("", ""),
        ("..", ""),
        ("a\0.jpg", ""),
        ("only%00.tif", ""),
        ("only.txt", ""),
    ],
)
def test_what_is_in_doubt_is_a_hint(images, name, hint):
    found, said = find_near(images, name)
    assert found is None
    assert said.startswith(hint)
    assert bool(said) == bool(hint)


def test_a_sibling_folder_is_named(images):
    fill(images.parent / "val2017", ["v.jpg"])
    assert find_near(images, "v.jpg") == (None, "the sibling folder val2017 has it")


@pytest.mark.parametrize(
    "name", ["../only.tif", "%2e%2e/only.tif", "..\\only.tif", "sub/../../only.tif", "{}"]
)
def test_a_file_outside_is_not_taken_for_one_inside(images, name):
    fill(images.parent, ["only.tif"])
    assert find_near(images, name.format(images.parent / "only.tif")) == (None, "")
    assert find_near(images, str(images / "only.tif")) == ("only.tif", "")
    assert find_near(images, "sub/../only.tif") == ("only.tif", "")


def test_links_that_lead_out_are_not_found(images, tmp_path):
    fill(tmp_path, ["secret.jpg", "away/hidden.jpg"])
    (images / "linked.jpg").symlink_to(tmp_path / "secret.jpg")
    (images / "folder").symlink_to(tmp_path / "away")
    (images / "LOOP.jpg").symlink_to(images / "LOOP.jpg")
    for name in ("LINKED.jpg", "hidden.jpg", "folder/HIDDEN.jpg", "loop.jpg"):
        assert find_near(images, name)[0] is None


def test_a_mask_does_not_stand_for_an_image(tmp_path):
    fill(tmp_path, ["a.jpg", "a.png", "b.png"])
    assert find_near(tmp_path, "b.jpg")[0] is None
    assert find_near(tmp_path, "b.bmp")[0] == "b.png"


def test_a_file_is_not_given_to_two_names(images):
    near = near_files(images)
    found, hint = near.match(["img_1.jpg", "Img_1.jpg", "deep.jpg"], ())
    assert found == {"deep.jpg": "sub/deep.jpg"}
    assert hint == "img_1.jpg, Img_1.jpg could both be IMG_1.JPG"
    found, hint = near.match(["deep.jpg", "only.png"], {"sub/deep.jpg"})
    assert found == {"only.png": "only.tif"}
    assert hint == "sub/deep.jpg has another name in the set"


def test_a_folder_is_listed_again_after_a_change(images):
    assert find_near(images, "NEW.jpg")[0] is None
    time.sleep(0.02)
    fill(images, ["new.jpg"])
    assert find_near(images, "NEW.jpg")[0] == "new.jpg"
    assert find_near(images / "none", "NEW.jpg") == (None, "")


@pytest.mark.slow
def test_a_hundred_thousand_missing_names_take_seconds(tmp_path):
    started = time.process_time()
    near = NearFiles(Path(tmp_path), (f"{number:012d}.jpg" for number in range(118_000)))
    found, _ = near.match((f"train2017/{number:012d}.jpg" for number in range(118_000)), ())
    assert len(found) == 118_000
    assert time.process_time() - started < 20
