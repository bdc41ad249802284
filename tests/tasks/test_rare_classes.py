"""Class weights, losses and sampling, from a config to the losses and batches of each task."""

import itertools
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from running import assert_one_line

from res2net_dense.config import config_to_dict, load_config, parse_config
from res2net_dense.errors import ConfigError
from res2net_dense.tasks import get_task

CLASSES, MAPS, BOXES = (
    "quick/classification_res2net50", "quick/deeplabv3plus_res2net50", "quick/faster_rcnn_res2net50",
)  # fmt: skip
EVERY = pytest.mark.parametrize("name", [CLASSES, MAPS, BOXES])


@pytest.fixture
def prepared(load):
    """A config with what its data say."""

    def prepared(name, *overrides, training=True, **options):
        config = load(*overrides, config=name, **options)
        return get_task(config.task).prepare(config, training=training)

    return prepared


def counts_by_hand(config):
    """Objects, pixels or images of each class in the samples of the training set."""
    source = get_task(config.task).open_source(config, train=True)
    found = np.zeros(len(config.data.class_names))
    for place in range(len(source)):
        sample = source.sample(place)
        labels = sample.get("labels", sample.get("sem_seg", torch.tensor([sample.get("label", 0)])))
        for label, count in Counter(labels.flatten().tolist()).items():
            if label != 255:
                found[label] += count
    return found


def loss_weights(model):
    """The weights of the classes where they act."""
    (found,) = [value for key, value in model.named_buffers() if key.endswith("class_weights")]
    return found.tolist()


@EVERY
def test_names_have_weights(prepared, name):
    config = prepared(name, "model.class_weights={star: 2, circle: 0.5}")
    expected = [{"star": 2.0, "circle": 0.5}.get(one, 1.0) for one in config.data.class_names]
    assert config.model.class_weights == expected
    task = get_task(config.task)
    model = task.build_model(config, load_weights=False)
    assert loss_weights(model)[: len(expected)] == expected
    assert not any(key.endswith("class_weights") for key in model.state_dict())
    assert parse_config(config_to_dict(config)) == config
    assert task.prepare(config) == config  # as a resumed run does


@EVERY
def test_balanced_weights_are_counted_in_the_training_set(prepared, name, capsys):
    config = prepared(name, "model.class_weights=balanced")
    counts = counts_by_hand(config)
    expected = counts.sum() / (counts > 0).sum() / counts
    np.testing.assert_allclose(config.model.class_weights, expected, rtol=1e-3)
    rarest = config.data.class_names[int(counts.argmin())]
    assert f"model.class_weights=balanced: {rarest} {max(expected):.4g}" in capsys.readouterr().out


@EVERY
def test_an_evaluation_needs_no_training_set_for_them(prepared, name):
    config = prepared(name, "data.train=null", "model.class_weights=balanced", training=False)
    model = get_task(config.task).build_model(config, load_weights=False)
    assert not any(key.endswith("class_weights") for key, _ in model.named_buffers())


@EVERY
def test_a_wrong_name_or_number_of_weights_is_refused(prepared, name):
    with pytest.raises(ConfigError) as error:
        prepared(name, "model.class_weights={str: 2}")
    assert_one_line(error, "model.class_weights", "'str'", "did you mean star?")
    config = prepared(name, "model.class_weights=[1, 2]")
    with pytest.raises(ConfigError) as error:
        get_task(config.task).build_model(config, load_weights=False)
    assert_one_line(error, "model.class_weights", "2", "classes")


@pytest.mark.parametrize(
    ("name", "setting", "words"),
    [
        (CLASSES, "model.class_weights=balancd", ["expected 'balanced', a list"]),
        (BOXES, "model.class_weights={star: -1}", ["expected 'balanced'"]),
        (BOXES, "model.class_weights={star: true}", ["expected 'balanced'"]),
        (BOXES, "model.class_weights=[]", ["expected 'balanced'"]),
        (BOXES, "model.class_weights=[0, 0]", ["at least one must be above 0"]),
        (MAPS, "model.class_weights=2", ["expected 'balanced'"]),
        (MAPS, "model.losses.dise=1", ["unknown key 'model.losses.dise'", "did you mean", "dice"]),
        (MAPS, "model.losses.dice=-1", ["model.losses.dice = -1"]),
        (MAPS, "model.losses={cross_entropy: 0}", ["one of the losses must be above 0"]),
        (MAPS, "model.focal_gamma=3", ["no effect with model.losses.focal"]),
        (MAPS, "model={losses: {cross_entropy: 0, dice: 1}, label_smoothing: 0.1}", ["no effect"]),
        (CLASSES, "data.sampling=balancd", ["data.sampling", "balanced"]),
        (CLASSES, "data.repeat_threshold=0.5", ["no effect with data.sampling"]),
        (CLASSES, "data={sampling: repeat_factor, repeat_threshold: 2}", ["data.repeat_threshold = 2"]),
        (MAPS, "data={sampling: balanced, tiles: {size: 64}}", ["data.tiles.train=none", "class_weights"]),
        ("quick/sod_res2net50", "data.sampling=balanced", ["unknown key 'data.sampling'"]),
    ],
)  # fmt: skip
def test_what_has_no_effect_or_meaning_is_refused(name, setting, words):
    with pytest.raises(ConfigError) as error:
        load_config(name, [setting])
    assert_one_line(error, *words)


def test_whole_images_beside_tiles_are_sampled():
    config = load_config(MAPS, ["data={sampling: balanced, tiles: {size: 64, train: none}}"])
    assert config.data.sampling == "balanced"


@pytest.fixture
def rare(draw, tmp_path):
    """The toy set of a config with few images of two of its classes."""

    def rare(name):
        folder = shutil.copytree(draw(name), tmp_path / "rare")
        if name == CLASSES:
            for place in sorted((folder / "train").iterdir())[2:]:
                shutil.rmtree(place)
            files = sorted(next(iter(sorted((folder / "train").iterdir()))).iterdir())
            for file in files[1:]:
                file.unlink()
            for number in range(6):
                other = sorted((folder / "train").iterdir())[1]
                shutil.copy(sorted(other.iterdir())[0], other / f"more_{number}.png")
        return folder

    return rare


def images_of_classes(config, batches):
    """In how many of the images of so many batches each class is."""
    task, found = get_task(config.task), Counter()
    for batch in itertools.islice(task.build_train_loader(config), batches):
        for sample in batch:
            found.update({sample["label"]} if "label" in sample else set(sample["labels"].tolist()))
    return found


def test_balanced_sampling_shows_all_classes_equally_often(prepared, rare, capsys):
    root = rare(CLASSES)
    plain = prepared(CLASSES, "data.val=null", root=root)
    config = prepared(CLASSES, "data.val=null", "data.sampling=balanced", root=root)
    before = images_of_classes(plain, 18)
    capsys.readouterr()
    after = images_of_classes(config, 18)
    assert before[1] > 6 * before[0]
    assert abs(after[0] - after[1]) <= 8  # of 72; what is drawn is by chance
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("data.sampling")]
    first, second = config.data.class_names
    assert said == [
        f"data.sampling=balanced: 9 images, 9 in an epoch; of each class {first} 1 -> 4, {second} 8 -> 4"
    ]


def test_repeated_images_come_more_often(prepared, rare, capsys):
    root = rare(CLASSES)
    settings = ["data.val=null", "data.sampling=repeat_factor"]
    config = prepared(CLASSES, *settings, "data.repeat_threshold=1.0", root=root)
    found = images_of_classes(config, 30)
    assert found[0] / found[1] == pytest.approx(3 / 8 / np.sqrt(9 / 8), abs=0.08)
    out = capsys.readouterr().out
    assert "data.sampling=repeat_factor: 9 images, 11 in an epoch" in out
    loader = get_task(config.task).build_train_loader(config)
    assert loader.images == 11  # of which `train.epochs` counts
    config = prepared(CLASSES, *settings, root=root)
    with pytest.raises(ConfigError) as error:
        get_task(config.task).build_train_loader(config)
    assert_one_line(error, "repeats no image", config.data.class_names[0], "0.111", "data.repeat_threshold")


@pytest.mark.parametrize("name", [MAPS, BOXES])
def test_sampling_goes_by_objects_and_by_pixels(prepared, name, capsys):
    config = prepared(name, "data.sampling=balanced")
    task = get_task(config.task)
    source = task.open_source(config, train=True)
    loader = task.build_train_loader(config)
    assert loader.images == pytest.approx(len(source), abs=1)
    line = next(
        one for one in capsys.readouterr().out.splitlines() if one.startswith("data.sampling=balanced")
    )
    present = Counter()
    for place in range(len(source)):
        sample = source.sample(place)
        labels = set(sample.get("labels", sample.get("sem_seg")).flatten().tolist()) - {255}
        present.update(config.data.class_names[label] for label in labels)
    assert all(f"{one} {count} -> " in line for one, count in present.items()), line
    next(iter(loader))


def test_masks_are_read_once(prepared, monkeypatch):
    config = prepared(MAPS)
    task, reads = get_task(config.task), []
    source = task.open_source(config, train=True)
    read = type(source).mask
    monkeypatch.setattr(type(source), "mask", lambda self, place: reads.append(place) or read(self, place))
    source = task.open_source(
        prepared(MAPS, "model.class_weights=balanced", "data.sampling=balanced"), train=True
    )
    first = len(reads)
    task.build_train_loader(prepared(MAPS, "data.sampling=balanced"))
    assert len(reads) == first


def test_any_number_of_workers_gives_the_same_samples(prepared):
    def images(workers):
        config = prepared(CLASSES, "data.sampling=balanced", f"data.workers={workers}")
        loader = get_task(config.task).build_train_loader(config)
        return [sample["image"] for batch in itertools.islice(loader, 8) for sample in batch]

    for one, other in zip(images(0), images(2), strict=True):
        assert torch.equal(one, other)


def test_a_training_with_everything_resumes(load, train):
    settings = (
        "model.class_weights=balanced", "data.sampling=balanced", "train.save_every=1",
        "model={losses: {dice: 1, focal: 1, lovasz: 1}, aux_weight: 0.4, label_smoothing: 0.1}",
    )  # fmt: skip
    config = load(*settings, config=MAPS)
    train(config)
    metrics = train(
        config.model_copy(update={"train": config.train.model_copy(update={"iterations": 3})}), resume=True
    )
    assert 0 <= metrics["mIoU"] <= 100
