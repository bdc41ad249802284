"""Maps of any program scored against their masks: the true numbers, or one line that says why not."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("cv2")

from res2net_dense.cli import _score_saliency as script
from res2net_dense.errors import ConfigError, DatasetError
from res2net_dense.evaluation.saliency import METRICS, PROTOCOLS

SCRIPT = Path(__file__).parents[2] / "tools" / "evaluate_saliency.py"
SIZES = [(40, 60), (61, 35), (33, 33), (24, 80), (50, 50), (20, 31)]


def save(array, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def sets(tmp_path):
    """Six masks, the last without an object, and the maps of two programs."""
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate(SIZES):
        y, x = np.mgrid[:height, :width]
        disc = np.hypot(y - height / 2, x - width / 3) < min(height, width) / 3
        mask = 255 * (disc & (number < 5)).astype(np.uint8)
        save(mask, tmp_path / f"masks/{number}.png")
        for name, noise in (("good", 60), ("bad", 200)):
            values = mask + rng.normal(0, noise, mask.shape)
            save(values.clip(0, 255).astype(np.uint8), tmp_path / f"{name}/{number}.png")
    return tmp_path


@pytest.fixture
def score(sets):
    """Run the tool in this process; returns the JSON it writes."""

    def run(*predictions, masks=sets / "masks", workers=0, rescale=True, resize=False, **files):
        files = {"json": sets / "scores.json", "plot": None, "sheet": None, "images": None, **files}
        args = Namespace(
            predictions=list(map(str, predictions)), masks=str(masks), workers=workers, rescale=rescale,
            resize=resize, overwrite=False, **{key: file and str(file) for key, file in files.items()},
        )  # fmt: skip
        script.score_folders(args)
        return json.loads(Path(files["json"]).read_text())

    return run


def tree_hash(folder):
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(str(path).encode() + (path.read_bytes() if path.is_file() else b""))
    return digest.hexdigest()


# the numbers


def reference(masks, maps, suffix=".png"):
    """What PySODMetrics says of two folders."""
    sod = pytest.importorskip("py_sod_metrics")
    cv2 = pytest.importorskip("cv2")
    measures = [sod.MAE(), sod.Fmeasure(), sod.WeightedFmeasure(), sod.Smeasure(), sod.Emeasure()]
    for mask in sorted(masks.glob("*.png")):
        pair = [cv2.imread(str(file), cv2.IMREAD_GRAYSCALE) for file in (maps / mask.name, mask)]
        for measure in measures:
            measure.step(*pair)
    mae, f, weighted, s, e = (measure.get_results() for measure in measures)
    return {
        "MAE": mae["mae"], "max_F": f["fm"]["curve"].max(), "mean_F": f["fm"]["curve"].mean(),
        "adaptive_F": f["fm"]["adp"], "weighted_F": weighted["wfm"], "S": s["sm"],
        "max_E": e["em"]["curve"].max(), "mean_E": e["em"]["curve"].mean(), "adaptive_E": e["em"]["adp"],
    }  # fmt: skip


def test_the_published_values(score, shared_data):
    data = shared_data / "reference/pysodmetrics"
    published = json.loads((data / "version_performance.json").read_text())["v1_4_3"]
    document = score(data / "test_data/preds", masks=data / "test_data/masks")
    metrics = document["methods"]["preds"]["metrics"]
    names = {
        "MAE": "MAE", "max_F": "maxFm", "mean_F": "meanFm", "adaptive_F": "adpFm", "weighted_F": "wFmeasure",
        "S": "Smeasure", "max_E": "maxEm", "mean_E": "meanEm", "adaptive_E": "adpEm", "max_IoU": "maxiou",
        "mean_IoU": "meaniou", "adaptive_IoU": "adpiou",
    }  # fmt: skip
    for name, theirs in names.items():
        assert metrics[name] == pytest.approx(published[theirs], abs=1e-6), name
    for name, value in reference(data / "test_data/masks", data / "test_data/preds").items():
        assert metrics[name] == pytest.approx(value, abs=1e-6), name


def test_several_methods_at_once_are_each_scored_as_the_reference_does(score, sets):
    document = score(sets / "good", f"other={sets / 'bad'}")
    assert list(document["methods"]) == ["good", "other"]
    for name, folder in (("good", "good"), ("other", "bad")):
        for metric, value in reference(sets / "masks", sets / folder).items():
            scored = document["methods"][name]["metrics"][metric]
            assert scored == pytest.approx(value, abs=1e-6), (name, metric)


def test_masks_score_perfectly_against_themselves(score, sets):
    (sets / "masks/5.png").unlink()  # F of no object is 0
    metrics = score(sets / "masks")["methods"]["masks"]["metrics"]
    assert metrics["MAE"] == 0
    for metric in set(METRICS) - {"MAE"}:  # E may pass 1 by 1 / (pixels - 1)
        assert metrics[metric] == pytest.approx(1, abs=0.005), metric


@pytest.mark.parametrize("workers", [1, 2, 3, 50])
def test_the_workers_do_not_change_a_bit(score, sets, workers):
    score(sets / "good", sets / "bad")
    alone = (sets / "scores.json").read_bytes()
    score(sets / "good", sets / "bad", workers=workers)
    assert (sets / "scores.json").read_bytes() == alone


def test_the_document_has_everything(score, sets):
    document = score(sets / "good")
    assert document["protocols"] == PROTOCOLS
    assert (document["masks"], document["rescale"]) == (str(sets / "masks"), True)
    method = document["methods"]["good"]
    assert (method["predictions"], method["resized"]) == (str(sets / "good"), 0)
    assert {key: len(curve) for key, curve in method["curves"].items()} == dict.fromkeys(
        ("precision", "recall", "f", "e", "iou"), 256
    )
    assert list(method["images"]) == list("012345")
    for metric in ("MAE", "S", "adaptive_F"):
        mean = np.mean([scores[metric] for scores in method["images"].values()])
        assert mean == pytest.approx(method["metrics"][metric], abs=1e-9)
    best = np.mean([scores["max_F"] for scores in method["images"].values()])
    assert best == pytest.approx(method["metrics"]["max_F_per_image"], abs=1e-9)


def test_maps_are_stretched_unless_told_not_to(score, sets):
    for path in (sets / "good").iterdir():
        dim = np.asarray(Image.open(path)) // 4
        dim[0, :2] = 0, 60
        save(dim, sets / "dim" / path.name)
        stretched = np.rint(dim / 60 * 255 if dim.max() == 60 else dim * 1.0)
        save(stretched.astype(np.uint8), sets / "stretched" / path.name)
    dim, as_it_is = (
        score(sets / "dim", rescale=rescale)["methods"]["dim"]["metrics"]["MAE"] for rescale in (True, False)
    )
    assert as_it_is > dim + 0.05


def test_the_table_marks_the_best_and_names_the_protocols(score, sets, capsys):
    score(sets / "good", sets / "bad")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("6 masks in")
    assert "> 128" in lines[0]
    assert lines[2].split() == ["good", "bad"]
    for metric in METRICS:
        values, protocol = (line.split(maxsplit=1)[1] for line in lines if line.startswith(f"{metric} "))
        good, bad = values.split()
        assert good.endswith("*"), metric
        assert not bad.endswith("*"), metric
        assert protocol == PROTOCOLS[metric]
    assert "own minimum and maximum first" in lines[-1]


def test_a_single_method_has_no_marks_and_equal_ones_both():
    scores = dict.fromkeys(METRICS, 0.25)
    assert "*" not in script.table({"a": scores}).replace("2 * the", "")
    assert script.table({"a": scores, "b": scores}).splitlines()[1].split() == ["MAE", "0.2500*", "0.2500*"]


# which files


def grey_formats():
    yield "png", lambda grey: grey
    yield "bmp", lambda grey: grey
    yield "pgm", lambda grey: grey
    yield "tif", lambda grey: grey
    yield "gif", lambda grey: grey
    yield "PNG", lambda grey: grey.convert("RGB")
    yield "png", lambda grey: grey.convert("LA")
    yield "png", lambda grey: grey.convert("RGBA")


@pytest.mark.parametrize(("suffix", "change"), grey_formats())
def test_any_grey_format_scores_the_same(score, sets, suffix, change):
    expected = score(sets / "good")["methods"]["good"]["metrics"]
    (sets / "changed").mkdir()
    for path in (sets / "good").iterdir():
        change(Image.open(path)).save(sets / "changed" / f"{path.stem}.{suffix}")
    assert score(sets / "changed")["methods"]["changed"]["metrics"] == expected


def test_black_and_white_maps_of_one_bit(score, sets):
    for path in (sets / "masks").iterdir():
        (sets / "bits").mkdir(exist_ok=True)
        Image.open(path).convert("1").save(sets / "bits" / path.name)
    methods = score(sets / "bits", sets / "masks")["methods"]
    assert methods["bits"]["metrics"] == methods["masks"]["metrics"]


def test_subfolders_and_what_macos_leaves(score, sets):
    expected = score(sets / "good")["methods"]["good"]["metrics"]
    for folder in ("good", "masks"):
        (sets / folder / "sub").mkdir()
        shutil.move(sets / folder / "3.png", sets / folder / "sub" / "3.png")
        (sets / folder / "._0.png").write_bytes(b"no image")
    (sets / "good/notes.txt").write_text("no map")
    assert score(sets / "good")["methods"]["good"]["metrics"] == expected


def test_images_and_masks_in_one_folder(score, sets):
    expected = score(sets / "good")["methods"]["good"]["metrics"]
    for path in list((sets / "masks").iterdir()):
        save(np.full((9, 9, 3), (200, 30, 30), np.uint8), path.with_suffix(".jpg"))
    assert score(sets / "good")["methods"]["good"]["metrics"] == expected


def test_a_name_with_a_sign_in_it(score, sets):
    (sets / "good").rename(sets / "lr=0.1")
    methods = score(sets / "lr=0.1", f"a={sets / 'bad'}")["methods"]
    assert list(methods) == ["lr=0.1", "a"]


def test_other_sizes_are_scaled_where_asked(score, sets, capsys):
    for name in "02":
        image = Image.open(sets / f"good/{name}.png")
        image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST).save(
            sets / f"good/{name}.png"
        )
    before = score(sets / "bad")
    document = score(sets / "good", sets / "bad", resize=True)
    assert document["methods"]["good"]["resized"] == 2
    assert document["methods"]["bad"] == before["methods"]["bad"]
    assert document["methods"]["good"]["images"]["0"]["MAE"] < 0.25
    assert "good: 2 of 6 maps were scaled to their masks, bilinear" in capsys.readouterr().out


def test_maps_without_a_mask_are_named_and_left_out(score, sets, capsys):
    expected = score(sets / "good")["methods"]["good"]
    for name in ("x", "y"):
        save(np.zeros((5, 5), np.uint8), sets / f"good/{name}.png")
    assert score(sets / "good")["methods"]["good"] == expected
    assert "warning: good: 2 of 8 maps" in capsys.readouterr().err


def test_another_count_than_published_is_reported(score, sets, capsys):
    (sets / "masks").rename(sets / "ECSSD")
    score(sets / "good", masks=sets / "ECSSD")
    assert "warning: ECSSD has 6 pairs here but 1000 as published" in capsys.readouterr().err


def test_the_data_is_not_written_to(score, sets):
    before = [tree_hash(sets / name) for name in ("good", "bad", "masks")]
    score(sets / "good", sets / "bad", workers=2, plot=sets / "curves.png")
    assert [tree_hash(sets / name) for name in ("good", "bad", "masks")] == before


@pytest.mark.parametrize(
    ("suffix", "head"), [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml"), (".PNG", b"\x89PNG")]
)
def test_curves_are_drawn(score, sets, suffix, head):
    score(sets / "good", sets / "bad", plot=sets / f"curves{suffix}")
    assert (sets / f"curves{suffix}").read_bytes().startswith(head)


def draw_images(sets):
    """A plain image for each mask, all of another grey."""
    for number, (height, width) in enumerate(SIZES):
        grey = np.full((height, width, 3), 60 + 30 * number, np.uint8)
        save(grey, sets / f"images/{number}.jpg")
    return sets / "images"


def test_the_worst_images_are_drawn_worst_first(score, sets):
    document = score(sets / "bad", sets / "good", sheet=sets / "worst.png", images=draw_images(sets))
    sheet = np.array(Image.open(sets / "worst.png"))
    errors = {stem: each["MAE"] for stem, each in document["methods"]["bad"]["images"].items()}
    order = sorted(errors, key=errors.get, reverse=True)
    column = sheet[:, 128].astype(int)  # through the middle of all images
    tops = {stem: np.flatnonzero(np.abs(column - 60 - 30 * int(stem)).max(axis=1) < 3)[0] for stem in errors}
    assert sorted(tops, key=tops.get) == order


def test_the_sheet_takes_maps_of_another_size_where_asked(score, sets):
    Image.open(sets / "good/1.png").resize((20, 20)).save(sets / "good/1.png")
    score(sets / "good", resize=True, sheet=sets / "worst.png", images=draw_images(sets))
    assert Image.open(sets / "worst.png").mode == "RGB"


# what is refused


def remove(*names):
    return lambda sets: [(sets / name).unlink() for name in names]


def put(name, image):
    return lambda sets: image.save(sets / name)


def write(name, data):
    return lambda sets: (sets / name).write_bytes(data)


def cut_in_half(sets):
    data = (sets / "good/0.png").read_bytes()
    (sets / "good/0.png").write_bytes(data[: len(data) // 2])


def coloured(mode):
    image = Image.new("RGB", (60, 40), (200, 10, 10))
    return image.quantize(4) if mode == "P" else image


def cut_out():
    image = Image.new("LA", (60, 40), (255, 255))
    image.putpixel((3, 3), (255, 7))
    return image


def sixteen(kind):
    return Image.fromarray(np.full((40, 60), 300, kind))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda sets: shutil.rmtree(sets / "masks"), r"masks: folder of masks not found"),
        (lambda sets: shutil.rmtree(sets / "good"), r"good: folder of maps not found"),
        (lambda sets: remove(*(f"masks/{n}.png" for n in range(6)))(sets), r"masks: .*no file"),
        (lambda sets: remove(*(f"good/{n}.png" for n in range(6)))(sets), r"good: .*no file"),
        (remove("good/1.png", "good/4.png"), r"good: 2 of 6 masks in .*masks have no map: 1, 4; all"),
        (lambda sets: (sets / "good/1.png").rename(sets / "good/1_sal.png"),
         r"1 of 6 masks .* no map: 1; maps there without a mask: 1_sal; all"),
        (put("good/0.bmp", Image.new("L", (60, 40))), r"good: 1 files have the name of another .*0\.png"),
        (lambda sets: [put("masks/0.jpg", coloured("RGB"))(sets), put("masks/7.jpg", coloured("RGB"))(sets)],
         r"masks: 1 files have the name of another .*0\.png"),
        (put("masks/0.bmp", Image.new("L", (60, 40))), r"masks: 1 files have the name of another .*0\.png"),
        (put("good/0.png", Image.new("L", (61, 40))), r"good/0\.png: .* 61x40, .* is 60x40; .*--resize"),
        (put("good/0.png", coloured("RGB")), r"good/0\.png: the map is a (palette in colour|colour image)"),
        (put("good/0.png", coloured("P")), r"good/0\.png: the map is a (palette in colour|colour image)"),
        (put("good/0.png", cut_out()), r"good/0\.png: the map has transparent pixels"),
        (put("good/0.png", sixteen(np.uint16)), r"good/0\.png: the map has more than 8 bits"),
        (lambda sets: [remove("good/0.png")(sets), put("good/0.tif", sixteen(np.float32))(sets)],
         r"good/0\.tif: the map has more than 8 bits"),
        (write("good/0.png", b""), r"good/0\.png: empty or not an image"),
        (write("good/0.png", b"<html>"), r"good/0\.png: empty or not an image"),
        (cut_in_half, r"good/0\.png: the image cannot be read"),
        (write("masks/0.png", b"<html>"), r"masks/0\.png: empty or not an image"),
        (put("masks/0.png", coloured("RGB")), r"masks/0\.png: the mask is a colour image"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("workers", [0, 2])
def test_broken_data_is_one_line(score, sets, spoil, message, workers):
    spoil(sets)
    with pytest.raises(DatasetError, match=message) as caught:
        score(sets / "good", sets / "bad", workers=workers)
    assert "\n" not in str(caught.value)
    assert not (sets / "scores.json").exists()


@pytest.mark.parametrize(
    ("predictions", "keywords", "message"),
    [
        (["good", "good"], {}, r"are both named good; write OTHERNAME=.*good"),
        (["a=good", "a=bad"], {}, "are both named a"),
        (["=good"], {}, "has no name or no folder"),
        (["a="], {}, "has no name or no folder"),
        (["good"], {"json": "scores.txt"}, r"--json .*must end in \.json"),
        (["good"], {"json": "none/scores.json"}, r"--json .*no folder .*none"),
        (["good"], {"json": "good/scores.json"}, r"--json .*is in .*good"),
        (["good"], {"plot": "masks/curves.png"}, r"--plot .*is in .*masks"),
        (["good"], {"sheet": "worst.jpg", "images": "masks"}, r"--sheet .*must end in \.png"),
        (["good"], {"sheet": "masks/worst.png", "images": "masks"}, r"--sheet .*is in .*masks"),
        (["good"], {"plot": "x.png", "sheet": "x.png", "images": "masks"}, "is the file of --plot too"),
        (["good"], {"plot": "curves.jpg"}, r"--plot .*must end in \.png or \.pdf or \.svg"),
    ],
)
def test_wrong_arguments_are_one_line(score, sets, monkeypatch, predictions, keywords, message):
    monkeypatch.chdir(sets)
    with pytest.raises(ConfigError, match=message) as caught:
        score(*predictions, **keywords)
    assert "\n" not in str(caught.value)


def test_missing_or_differing_images_are_one_line(score, sets):
    images = draw_images(sets)
    Image.open(images / "2.jpg").resize((9, 9)).save(images / "2.jpg")
    with pytest.raises(DatasetError, match=r"2\.png: the mask is 33 x 33 but the image .*2\.jpg is 9 x 9"):
        score(sets / "good", sheet=sets / "worst.png", images=images)
    (images / "2.jpg").unlink()
    with pytest.raises(DatasetError, match="1 of 6 images are not in .*images: 2"):
        score(sets / "good", sheet=sets / "worst.png", images=images)


# as a person runs it


def test_an_error_in_a_worker_ends_the_tool_with_one_line(run_tool, sets):
    (sets / "good/3.png").write_bytes(b"no image")
    process = run_tool(SCRIPT, "--predictions", sets / "good", "--masks", sets / "masks", "--workers", 2)
    assert process.returncode == 1
    assert process.stdout == ""
    assert process.stderr.splitlines()[0].startswith(f"error: {sets / 'good/3.png'}: empty or not an image")
    assert len(process.stderr.splitlines()) == 1


def start_long(sets):
    """Start the tool on work of minutes; returns it with its two workers at work."""
    rng = np.random.default_rng(0)
    save(255 * (rng.random((1500, 1500)) > 0.5).astype(np.uint8), sets / "large/0.png")
    for number in range(1, 60):
        os.link(sets / "large/0.png", sets / f"large/{number}.png")
    command = [sys.executable, SCRIPT, "--predictions", f"a={sets / 'large'}", "--masks", sets / "large"]
    process = subprocess.Popen(
        [*map(str, command), "--workers", "2", "--json", str(sets / "scores.json")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        # tests that run in a shell's background have interrupts ignored, and so would the tool
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 120
    while len(workers := children.read_text().split()) < 2:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.5)
    return process, [int(worker) for worker in workers]


def wait_until_gone(pid):
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the workers in Linux' /proc")
@pytest.mark.parametrize("whom", ["everyone", "a worker"])
def test_being_stopped_ends_cleanly(sets, whom):
    """Ctrl-C in a terminal goes to all processes; one that eats the memory is killed alone."""
    process, workers = start_long(sets)
    if whom == "everyone":
        os.killpg(process.pid, signal.SIGINT)
    else:
        os.kill(workers[0], signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    for worker in workers:
        wait_until_gone(worker)
    assert "Traceback" not in err
    assert out == ""
    assert not (sets / "scores.json").exists()
    if whom == "everyone":
        assert (process.returncode, err) == (130, "stopped by SIGINT\n")
    else:
        assert process.returncode == 1
        assert "was killed by SIGKILL while it read" in err
        assert "take fewer workers" in err
