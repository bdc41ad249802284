"""P36: memory is bounded by what is asked for: long and thin images, very large ones, long logs."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from running import run_afresh
from tiny_tasks import SETTINGS, detection, write_config, write_weights

from res2net_dense.models.detections import PARTS_BYTES
from res2net_dense.outputs import LEDGER, Outputs
from res2net_dense.report.formats import FORMATS, Classes, Predicted, Saved
from res2net_dense.types import MaskPart

linux = pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
PEAK = """
import json, re, sys
from pathlib import Path

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024

def start():
    Path("/proc/self/clear_refs").write_text("5")
    return peak()

"""
PREDICT = """
from res2net_dense.errors import OutOfMemoryError
from res2net_dense.predictor import Predictor
import torch
torch.set_num_threads(1)
predictor = Predictor.load({weights!r}, device="cpu")
files = [Path(file) for file in {files!r}]
before = start()
try:
    for _, _, prediction in predictor.stream(files, lambda number, error: print(error, file=sys.stderr)):
        assert prediction
except OutOfMemoryError as error:  # of masks, in one line, before the memory is taken
    assert "data.tiles" in str(error)
print(json.dumps(peak() - before))
"""
LOG = """
from res2net_dense.engine.metric_log import MetricLog
folder = Path({folder!r})
before = start()
MetricLog(folder, iterations=9).truncate({kept})
print(json.dumps(peak() - before))
"""
COMMAND = """
from contextlib import redirect_stdout
import torch
from res2net_dense.cli import main
torch.set_num_threads(1)
words = "predict --weights {weights} --input {folder} --output {folder}/out runtime.device=cpu"
before = start()
with redirect_stdout(sys.stderr):
    assert main(words.split()) == 0
print(json.dumps(peak() - before))
"""
THIN = [(1, 5000), (5000, 1), (4, 500), (20, 3000)]


@pytest.fixture
def weights(draw_toy, tmp_path):
    """Weights of a tiny model of a task, and its config."""

    def write(kind):
        config = write_config(kind, draw_toy, tmp_path)
        write_weights(config, tmp_path / "model.safetensors")
        return str(config), str(tmp_path / "model.safetensors")

    return write


@linux
@pytest.mark.slow
@pytest.mark.parametrize("kind", SETTINGS)
def test_long_and_thin_images_take_little(kind, weights, tmp_path):
    """With the overlays, which enlarge small images."""
    _, model = weights(kind)
    (tmp_path / "thin").mkdir()
    for height, width in THIN:
        values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / f"thin/{height}x{width}.png")
    assert run_afresh(PEAK + COMMAND.format(weights=model, folder=f"{tmp_path}/thin")) < 300
    assert len({path.stem for path in (tmp_path / "thin/out").rglob("*x*.png")}) == len(THIN)


@linux
@pytest.mark.slow
@pytest.mark.parametrize("kind", SETTINGS)
def test_a_large_image_takes_some_bytes_a_pixel(kind, weights, tmp_path):
    _, model = weights(kind)
    Image.new("1", (13_000, 13_000)).save(tmp_path / "large.png")  # 169 Mpx
    megabytes = run_afresh(PEAK + PREDICT.format(weights=model, files=[f"{tmp_path}/large.png"]))
    masks = PARTS_BYTES >> 20 if kind == detection else 0
    assert megabytes < 169 * 25 + masks  # of which RGB are 3, and Pillow's copy 4


@linux
@pytest.mark.slow
def test_a_long_log_is_not_read_whole(tmp_path):
    line = {"iteration": 0, "lr": 0.1, "losses": {"loss_cls": 1.5}, "image_ids": list(range(1000))}
    with open(tmp_path / "metrics.jsonl", "w") as file:
        file.writelines(json.dumps({**line, "iteration": step}) + "\n" for step in range(1, 27_001))
    assert (tmp_path / "metrics.jsonl").stat().st_size > 120 << 20
    assert run_afresh(PEAK + LOG.format(folder=str(tmp_path), kept=26_000)) < 10
    with open(tmp_path / "metrics.jsonl") as file:
        assert sum(1 for _ in file) == 26_000


@pytest.mark.parametrize("name", ["yolo", "png", "polygons"])
def test_masks_of_a_large_image_are_saved_as_others(name, tmp_path):
    """They are parts of it there, so that they do not fill the memory."""
    masks = torch.zeros(2, 40, 50, dtype=torch.bool)
    masks[0, 5:20, 7:30], masks[1, 30:38, 1:9] = True, True
    parts = [MaskPart(5, 7, masks[0, 5:20, 7:30], (40, 50)), MaskPart(28, 0, masks[1, 28:, :12], (40, 50))]
    boxes = {"boxes": torch.tensor([[7.0, 5, 30, 20], [1, 30, 9, 38]]), "labels": torch.tensor([0, 1])}
    entry = {"id": 1, "file_name": "a.png", "height": 40, "width": 50}
    files = []
    for number, own in enumerate(({"masks": masks}, {"mask_parts": parts})):
        folder = tmp_path / str(number)
        writer = FORMATS[name](Outputs(folder), Classes(["a", "b"], [1, 2]), 0.5)
        part = writer.add(Predicted(Path("a"), entry, {**boxes, "scores": torch.ones(2), **own}, []))
        writer.close(lambda part=part: iter([Saved(entry, [], part)]))
        found = (path for path in folder.rglob("*") if path.is_file() and path.name != LEDGER)
        files.append({path.relative_to(folder): path.read_bytes() for path in found})
    assert files[0] == files[1]
    assert files[0]
