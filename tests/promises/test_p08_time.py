"""P8, its time: the quick check of a large set takes seconds, and less when it was seen before."""

import json
import time

import numpy as np
import pytest
from PIL import Image

from res2net_dense.data.check import check_sources
from res2net_dense.data.layouts import CocoPart, open_source

IMAGES = 5000


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A set in COCO's layout of 5,000 small JPEGs."""
    folder = tmp_path_factory.mktemp("large")
    values = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(values).save(folder / "one.jpg")
    content = (folder / "one.jpg").read_bytes()
    for number in range(IMAGES):
        (folder / f"{number}.jpg").write_bytes(content)
    images = [{"id": n + 1, "file_name": f"{n}.jpg", "height": 48, "width": 64} for n in range(IMAGES)]
    entries = [
        {
            "id": n + 1,
            "image_id": n % IMAGES + 1,
            "category_id": 1,
            "bbox": [5, 6, 7, 8],
            "area": 56,
            "iscrowd": 0,
        }
        for n in range(7 * IMAGES)
    ]
    content = {"images": images, "categories": [{"id": 1, "name": "one"}], "annotations": entries}
    (folder / "set.json").write_text(json.dumps(content))
    return folder


def test_5000_images_are_checked_in_20_seconds(large, tmp_path, monkeypatch):
    monkeypatch.setenv("RES2NET_DENSE_CACHE", str(tmp_path))
    part = CocoPart(images=str(large), annotations=f"{large}/set.json")
    start = time.monotonic()
    source = open_source([part], train=True, needs=["boxes"])
    for _ in range(2):
        assert not check_sources({"data.train": source})["data.train"].counts
    assert time.monotonic() - start < 20
    (large / "4999.jpg").write_bytes(b"")
    found = check_sources({"data.train": source})["data.train"]
    assert [(finding.code, finding.place) for finding in found] == [("image-unreadable", 4999)]
