"""P19: workers that read annotations share them, so memory does not grow with the epochs."""

import json
import os

import numpy as np
import pytest
from PIL import Image

WIDTH, HEIGHT = 64, 48
TRAIN = """
import os, sys
from pathlib import Path
from res2net_dense.data.layouts import CocoPart, open_source
from res2net_dense.data.loaders import BatchLoader, TrainBatches, TrainSet

def pss():
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    lines = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in (os.getpid(), *children)]
    return sum(int(text.split("\\nPss:")[1].split()[0]) for text in lines)

def same(sample, rng):
    return sample

part = CocoPart(annotations=sys.argv[1] + "/set.json", images=sys.argv[1])
source = open_source([part], train=True, needs=["boxes", "masks"])
size = len(source)
batches = TrainBatches(size, 4, seed=0)
loader = iter(BatchLoader(TrainSet(source, range(size), same, seed=0), batches, workers=2))
next(loader)
print(0, pss())
batches_left = [size // 4 - 1, size // 4, size // 4]
for left in batches_left:
    objects = sum(len(sample["boxes"]) for _ in range(left) for sample in next(loader))
    print(objects, pss())
"""


def write_set(folder, objects, images):
    """Images with as many objects each, all of other outlines."""
    rng = np.random.default_rng(0)
    Image.new("RGB", (WIDTH, HEIGHT), (90, 120, 60)).save(folder / "1.jpg")
    for number in range(2, images + 1):
        os.link(folder / "1.jpg", folder / f"{number}.jpg")
    boxes = rng.uniform((0, 0, 4, 4), (40, 30, 24, 18), (objects, 4)).round(2)
    annotations = []
    for number, (x, y, width, height) in enumerate(boxes.tolist(), start=1):
        outline = [x, y, x + width, y, x + width, y + height / 2, x + width / 2, y + height, x, y + height]
        annotations.append(
            {
                "id": number,
                "image_id": number % images + 1,
                "category_id": 1,
                "bbox": [x, y, width, height],
                "area": width * height * 7 / 8,
                "iscrowd": 0,
                "segmentation": [outline],
            }
        )
    content = {
        "images": [
            {"id": n, "file_name": f"{n}.jpg", "width": WIDTH, "height": HEIGHT} for n in range(1, images + 1)
        ],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": annotations,
    }
    (folder / "set.json").write_text(json.dumps(content))


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="needs Linux's smaps_rollup")
@pytest.mark.parametrize(
    ("objects", "images"), [(20_000, 400), pytest.param(200_000, 2_000, marks=pytest.mark.slow)]
)
def test_memory_does_not_grow_with_the_epochs(tmp_path, run_code, objects, images):
    write_set(tmp_path, objects, images)
    done = run_code(TRAIN, str(tmp_path))
    epochs = [list(map(int, line.split())) for line in done.stdout.splitlines()]
    batch = 4 * objects // images
    assert [count for count, _ in epochs] == [0, objects - batch, objects, objects]
    start, first, *later = [pss for _, pss in epochs]
    assert first < 1.25 * start  # as Python objects, those that both workers read would be copied to each
    assert max(later) < 1.1 * first
