"""Classifiers by name: the right network for every file, or one line why not; images prepared as usual."""

import hashlib
import json
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from networks import SMALL, TINY
from PIL import Image
from safetensors.torch import save_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, ImageNetInfo, create_transform
from torchvision.models._meta import _IMAGENET_CATEGORIES

import res2net_dense
from res2net_dense import create_backbone, create_classifier, get_model, list_models, predict_image
from res2net_dense.backbones.weights import IMAGENETTE, WEIGHTS, Weights
from res2net_dense.errors import CheckpointError, ConfigError, DatasetError
from res2net_dense.hub import Preprocessing, imagenet_classes
from res2net_dense.models.classification import ClassificationModel
from res2net_dense.weight_files import save_weights

NAME = "res2net50_26w_4s"
DEPTHS = (1, 1, 1, 1)
"""Fewer blocks, where the real size is not needed."""


def randomised(network):
    """Statistics and scales as a trained network has them: at their start, half of the blocks are silent."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            module.weight.data.uniform_(0.5, 1.0, generator=generator)
    return network.eval()


def one_line(error):
    return "\n" not in str(error.value)


@pytest.fixture(scope="module")
def image_path(tmp_path_factory):
    """300 x 400 pixels, smooth and not symmetric."""
    noise = np.random.default_rng(1).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("image") / "image.png"
    Image.fromarray(noise).resize((400, 300), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture(scope="module")
def timms(tmp_path_factory):
    """A network of timm and its file."""
    torch.manual_seed(0)
    theirs = randomised(timm.create_model("res2net50_14w_8s", layers=DEPTHS))
    file = tmp_path_factory.mktemp("cache") / "weights.pth"
    torch.save(theirs.state_dict(), file)
    return theirs, file


@pytest.fixture
def published(timms, monkeypatch):
    """A published file in the cache, made by timm: its row, and timm's network."""
    theirs, file = timms
    row = Weights(
        name="res2net50_14w_8s", tag="test_in1k", urls=("http://localhost:9/weights.pth",),
        sha256=hashlib.sha256(file.read_bytes()).hexdigest()[:8], resize_size=240,
    )  # fmt: skip
    monkeypatch.setenv("RES2NET_DENSE_CACHE", str(file.parent))
    monkeypatch.setitem(WEIGHTS, row.key, row)
    return row, theirs, file


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return randomised(create_classifier(NAME, 3, **SMALL))


def run_file(path, network, names, **changes):
    """Weights as a classification run of ours leaves them."""
    config = {
        "task": "classification",
        "backbone": {"name": NAME, "weights": None, **changes.pop("backbone", {})},
        "model": {"pixel_mean": [100, 110, 120], "pixel_std": [50, 60, 70], **changes.pop("model", {})},
        "data": {"class_names": names, "resize_size": 48, "crop_size": 40, **changes},
    }
    return save_weights(
        path, ClassificationModel(network).state_dict(), {"metadata": json.dumps({"config": config})}
    )


class TestClassNames:
    def test_equal_torchvisions_and_timms(self):
        names = imagenet_classes()
        assert list(names.values()) == list(_IMAGENET_CATEGORIES)
        info = ImageNetInfo()
        assert list(names) == info.label_names()

    def test_agree_with_the_lemmas_of_wordnet(self):
        """All but the two that torchvision tells apart from a namesake, such as the bird from the machine."""
        info = ImageNetInfo()
        lemmas = [info.index_to_description(index).lower().split(", ") for index in range(1000)]
        plain = [name.lower().replace("'", "") for name in imagenet_classes().values()]
        strange = {
            name
            for name, words in zip(plain, lemmas, strict=True)
            if name not in [word.replace("'", "").strip() for word in words]
        }
        assert strange == {"crane bird", "maillot tank suit"}

    def test_no_two_are_alike(self):
        assert len(set(imagenet_classes().values())) == 1000

    def test_imagenette(self):
        assert [imagenet_classes()[key] for key in IMAGENETTE] == [
            "tench", "English springer", "cassette player", "chain saw", "church",
            "French horn", "garbage truck", "gas pump", "golf ball", "parachute",
        ]  # fmt: skip


class TestListModels:
    def test_networks(self):
        assert list_models() == res2net_dense.list_backbones()

    def test_published(self):
        tags = list_models(pretrained=True)
        assert f"{NAME}.in1k" in tags
        assert tags == sorted(WEIGHTS)
        assert {tag.split(".")[0] for tag in tags} <= set(list_models())

    @pytest.mark.parametrize(("pattern", "found"), [
        ("dla60x", ["dla60x"]),
        ("se_*101*", ["se_res2net101_26w_4s"]),
        ("res?et101", ["resnet101"]),
        ("resnet", ["resnet101", "resnet50", "se_resnet50"]),
        ("nothing", []),
        ("", None),
    ])  # fmt: skip
    def test_patterns(self, pattern, found):
        assert list_models(pattern) == (list_models() if found is None else found)

    def test_pattern_of_tags(self):
        assert list_models(f"{NAME}.in1k", pretrained=True) == [f"{NAME}.in1k"]


class TestWithoutWeights:
    def test_a_network_in_evaluation_mode(self):
        model = get_model(NAME, num_classes=7, in_channels=4, **SMALL)
        assert not model.training
        assert model.class_names is None
        assert model.preprocessing == Preprocessing()
        assert model(torch.zeros(2, 4, 32, 32)).shape == (2, 7)
        assert list(model.extract_features(torch.zeros(1, 4, 32, 32))) == ["res2", "res3", "res4", "res5"]

    def test_cifar_networks_look_at_small_images(self):
        model = get_model("res2next29_6c_24w_4s", num_classes=10)
        assert (model.preprocessing.resize_size, model.preprocessing.crop_size) == (32, 32)

    @pytest.mark.parametrize(("arguments", "words"), [
        (("res2net50_26w_4z",), "res2net50_26w_4s"),
        (("", None), "unknown"),
        ((f"{NAME}.in1k", "in1k"), "named twice"),
        ((None,), "a NoneType is not a name"),
        ((NAME, {"conv1.weight": 0}), "a dict is not a name, a tag or the path of a file"),
    ])  # fmt: skip
    def test_wrong_names(self, arguments, words):
        with pytest.raises(ConfigError, match=words) as error:
            get_model(*arguments)
        assert one_line(error)

    def test_no_classes(self):
        with pytest.raises(ConfigError, match="num_classes is 0"):
            get_model(NAME, num_classes=0)
        with pytest.raises(ConfigError, match="num_classes is '10'"):
            get_model(NAME, num_classes="10")

    def test_unknown_option(self):
        with pytest.raises(ConfigError, match="did you mean stage_pool"):
            get_model(NAME, stage_pol="strided")


class TestPublishedWeights:
    def test_equals_timm(self, published, image_path):
        row, theirs, _ = published
        model = get_model(row.key, depths=DEPTHS)
        x = torch.randn(2, 3, 96, 80)
        with torch.inference_mode():
            expected = theirs(x)
            assert (model(x) - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert model.class_names == _IMAGENET_CATEGORIES
        assert model.preprocessing == Preprocessing(resize_size=240)

        transform = create_transform(
            224,
            crop_pct=224 / 240,
            interpolation="bilinear",
            mean=IMAGENET_DEFAULT_MEAN,
            std=IMAGENET_DEFAULT_STD,
        )
        with torch.inference_mode():
            scores, labels = theirs(transform(Image.open(image_path))[None])[0].softmax(0).topk(4)
        found = predict_image(model, image_path, top=4)
        assert [guess["index"] for guess in found] == labels.tolist()
        assert [guess["score"] for guess in found] == pytest.approx(scores.tolist(), rel=1e-3)
        assert [guess["label"] for guess in found] == [_IMAGENET_CATEGORIES[label] for label in labels]

    def test_a_copy_elsewhere_is_the_same(self, published, tmp_path):
        row, _, file = published
        copy = tmp_path / "copy.pth"
        copy.hardlink_to(file)
        model = get_model(row.name, copy, depths=DEPTHS)
        assert model.preprocessing.resize_size == 240
        assert model.class_names == _IMAGENET_CATEGORIES

    def test_imagenette_row(self, tmp_path, monkeypatch, tiny):
        """Ten outputs that mean ten classes of ImageNet."""
        tiny.fc = torch.nn.Linear(128, 10)
        torch.save(tiny.state_dict(), tmp_path / "ten.pth")
        real = WEIGHTS[f"{NAME}.holocron_imagenette"]
        digest = hashlib.sha256((tmp_path / "ten.pth").read_bytes()).hexdigest()
        monkeypatch.setitem(WEIGHTS, real.key, replace(real, sha256=digest, dialect="official"))
        model = get_model(NAME, tmp_path / "ten.pth", **SMALL)
        assert model.class_names[0] == "tench"
        assert model.class_names[-1] == "parachute"

    def test_every_row_says_what_predicting_does(self):
        assert {row.interpolation for row in WEIGHTS.values()} == {"bilinear"}
        assert all(row.crop_size <= row.resize_size for row in WEIGHTS.values())

    def test_unknown_tag(self):
        with pytest.raises(CheckpointError, match=r"published are in1k") as error:
            get_model(f"{NAME}.in22k")
        assert one_line(error)


class TestFiles:
    def save(self, path, network, **extra):
        save_file({**network.state_dict(), **extra}, path)
        return path

    def test_round_trip_of_a_network_without_a_name(self, tmp_path, tiny):
        model = get_model(NAME, str(self.save(tmp_path / "w.safetensors", tiny)), **SMALL)
        x = torch.randn(1, 3, 64, 64)
        assert model(x).equal(tiny(x))
        assert model.num_classes == 3
        assert model.class_names is None
        assert not model.training

    def test_semantics_of_a_run_are_applied(self, tmp_path):
        torch.manual_seed(0)
        wide = {**SMALL, "planes": 16}  # in fewer channels the difference may be lost
        strided = randomised(create_classifier(NAME, 3, stage_pool="strided", **wide))
        path = run_file(
            tmp_path / "w.safetensors", strided, ["a", "b", "c"], backbone={"stage_pool": "strided"}
        )
        x = torch.randn(1, 3, 64, 64)
        assert get_model(NAME, path, **wide)(x).equal(strided(x))
        usual = create_classifier(NAME, 3, **wide).eval()
        usual.load_state_dict(strided.state_dict())
        assert not usual(x).allclose(strided(x), rtol=1e-3)
        with pytest.raises(CheckpointError, match="needs stage_pool='strided'") as error:
            get_model(NAME, path, stage_pool="always", **wide)
        assert one_line(error)

    def test_another_head_is_reported_and_randomly_initialized(self, tmp_path, tiny, caplog):
        path = run_file(tmp_path / "w.safetensors", tiny, ["a", "b", "c"])
        model = get_model(NAME, path, num_classes=5, **SMALL)
        assert "randomly initialized" in caplog.text
        assert model.fc.weight.shape == (5, 128)
        assert model.class_names is None
        assert model.layer1[0].conv3.weight.equal(tiny.layer1[0].conv3.weight)

    def test_the_same_head_is_kept(self, tmp_path, tiny, caplog):
        path = run_file(tmp_path / "w.safetensors", tiny, ["a", "b", "c"])
        model = get_model(NAME, path, num_classes=3, **SMALL)
        assert model.fc.weight.equal(tiny.fc.weight)
        assert model.class_names == ["a", "b", "c"]
        assert "randomly initialized" not in caplog.text

    def test_a_file_without_a_head(self, tmp_path, tiny):
        state = {key: value for key, value in tiny.state_dict().items() if not key.startswith("fc.")}
        save_file(state, tmp_path / "w.safetensors")
        with pytest.raises(CheckpointError, match="no classifier head: give num_classes") as error:
            get_model(NAME, tmp_path / "w.safetensors", **SMALL)
        assert one_line(error)
        assert get_model(NAME, tmp_path / "w.safetensors", num_classes=2, **SMALL).fc.out_features == 2

    def test_a_thousand_classes_are_imagenets(self, tmp_path, tiny):
        tiny.fc = torch.nn.Linear(128, 1000)
        model = get_model(NAME, self.save(tmp_path / "w.safetensors", tiny), **SMALL)
        assert model.class_names == _IMAGENET_CATEGORIES

    def call_in(self, error):
        """The name and the options that a message proposes, as Python reads them."""
        assert one_line(error)
        name, _, options = str(error.value).split(": build ")[1].partition(", or give")[0].partition(" with ")
        return name, eval(f"dict({options})", {})  # noqa: S307  # our own text

    @pytest.mark.parametrize("other", ["resnet50", "dla60"])
    def test_another_network(self, tmp_path, tiny, other):
        path = self.save(tmp_path / "it's.safetensors", tiny)
        with pytest.raises(
            CheckpointError, match=rf"1-1-1-1 blocks, 32w x 4s, 4 planes\), not {other} "
        ) as error:
            get_model(other, path)
        name, options = self.call_in(error)
        assert (name, options) == (TINY, {"depths": (1, 1, 1, 1)})
        assert get_model(name, path, **options).fc.weight.equal(tiny.fc.weight)

    @pytest.mark.parametrize("theirs", [
        SMALL,
        {**SMALL, "base_width": 48},
        {**SMALL, "scale": 2},
        {**SMALL, "cardinality": 2},
        {**SMALL, "se": True},
    ])  # fmt: skip
    def test_a_network_without_a_name_is_asked_for_in_full(self, tmp_path, theirs):
        network = create_classifier(NAME, 2, **theirs)
        path = self.save(tmp_path / "w.safetensors", network)
        with pytest.raises(CheckpointError, match=rf"not {NAME} \(7x7 stem, 3-4-6-3 blocks") as error:
            get_model(NAME, path)
        name, options = self.call_in(error)
        assert get_model(name, path, **options).fc.weight.equal(network.fc.weight)
        # The same in the words of the caller.
        assert get_model(NAME, path, **theirs).fc.weight.equal(network.fc.weight)
        with pytest.raises(CheckpointError, match=r"not res2net50_26w_4s \(7x7 stem, 1-1-2-1") as error:
            get_model(NAME, path, **{**theirs, "depths": (1, 1, 2, 1)})
        assert one_line(error)

    def test_channels_are_set_from_the_file(self, tmp_path):
        network = create_classifier(NAME, 2, in_channels=4, **SMALL)
        path = self.save(tmp_path / "w.safetensors", network)
        assert get_model(NAME, path, **SMALL).conv1.weight.equal(network.conv1.weight)

    def test_a_file_instead_of_a_name(self, tmp_path):
        for path in ("my.pth", tmp_path / "net", "runs/it's.safetensors"):
            with pytest.raises(ConfigError, match=r"name of a network first: get_model\(NAME, ") as error:
                get_model(path)
            assert one_line(error)
            assert str(path) in str(error.value)

    def test_a_file_with_the_name_of_a_network_does_not_matter(self, tmp_path, monkeypatch):
        (tmp_path / NAME).touch()
        monkeypatch.chdir(tmp_path)
        assert get_model(NAME, num_classes=2, **SMALL).num_classes == 2


class TestRunsOfOurs:
    def test_names_and_preprocessing_come_from_the_config(self, tmp_path, tiny):
        model = get_model(NAME, run_file(tmp_path / "w.safetensors", tiny, ["cat", "dog", "fox"]), **SMALL)
        assert model.class_names == ["cat", "dog", "fox"]
        assert model.preprocessing == Preprocessing((100, 110, 120), (50, 60, 70), 48, 40)

    def test_wordnet_ids_become_words(self, tmp_path, tiny):
        model = get_model(
            NAME, run_file(tmp_path / "w.safetensors", tiny, ["n01440764", "n01443537", "mine"]), **SMALL
        )
        assert model.class_names == ["tench", "goldfish", "mine"]

    @pytest.mark.parametrize("changes", [
        {"model": {"pixel_mean": None}},
        {"model": {"pixel_std": ["x", 1, 1]}},
        {"crop_size": "large"},
    ])  # fmt: skip
    def test_a_damaged_config_is_one_line(self, tmp_path, tiny, changes):
        path = run_file(tmp_path / "w.safetensors", tiny, ["a", "b", "c"], **changes)
        with pytest.raises(CheckpointError, match="damaged configuration") as error:
            get_model(NAME, path, **SMALL)
        assert one_line(error)

    def test_predicts_as_the_run_evaluates(self, tmp_path, tiny, image_path):
        """The pixels and the normalisation of the task's own loader and model."""
        from res2net_dense.data.images import read_sample
        from res2net_dense.data.transforms import Pipeline, ResizeAndCenterCrop

        model = get_model(NAME, run_file(tmp_path / "w.safetensors", tiny, ["a", "b", "c"]), **SMALL)
        trained = ClassificationModel(tiny, pixel_mean=(100, 110, 120), pixel_std=(50, 60, 70)).eval()
        with torch.inference_mode():
            sample = Pipeline(ResizeAndCenterCrop(48, 40))(read_sample(image_path, 0))
            logits = trained([sample])[0]["logits"]
        scores = {guess["index"]: guess["score"] for guess in predict_image(model, image_path)}
        assert [scores[index] for index in range(3)] == pytest.approx(logits.softmax(0).tolist(), rel=1e-5)


class TestPredictImage:
    def test_paths_pil_images_and_arrays_are_one_image(self, tiny, image_path):
        expected = predict_image(tiny, str(image_path))
        with Image.open(image_path) as image:
            assert predict_image(tiny, image) == expected
            assert predict_image(tiny, np.array(image)) == expected
            assert predict_image(tiny, image.convert("RGBA")) == expected
        assert len(expected) == 3
        assert sum(guess["score"] for guess in expected) == pytest.approx(1)
        assert expected[0]["label"] == f"class {expected[0]['index']}"

    def test_best_first_and_no_more_than_asked(self, tiny, image_path):
        scores = [guess["score"] for guess in predict_image(tiny, image_path)]
        assert scores == sorted(scores, reverse=True)
        assert predict_image(tiny, image_path, top=2) == predict_image(tiny, image_path)[:2]
        with pytest.raises(ConfigError, match="top is 0"):
            predict_image(tiny, image_path, top=0)

    def test_every_module_gets_its_mode_back_after_an_error_too(self, tiny, image_path):
        tiny.train()
        tiny.bn1.eval()
        before = tiny.layer1[0].bn1.running_mean.clone()
        for fails in (False, True):
            with pytest.raises(RuntimeError) if fails else nullcontext():
                predict_image(tiny, image_path)
            assert tiny.training
            assert tiny.layer1.training
            assert not tiny.bn1.training
            assert tiny.layer1[0].bn1.running_mean.equal(before)
            tiny.fc = torch.nn.Linear(7, 3)

    def test_in_the_precision_of_the_network(self, tiny, image_path):
        full = {guess["index"]: guess["score"] for guess in predict_image(tiny, image_path)}
        half = predict_image(tiny.bfloat16(), image_path)
        assert {guess["index"]: guess["score"] for guess in half} == pytest.approx(full, abs=0.05)

    def test_the_orientation_of_a_photo_is_applied(self, tiny, image_path, tmp_path):
        image = Image.open(image_path)
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(tmp_path / "turned.png", exif=exif)
        turned = predict_image(tiny, tmp_path / "turned.png")
        assert predict_image(tiny, Image.open(tmp_path / "turned.png")) == turned
        assert predict_image(tiny, image.transpose(Image.Transpose.ROTATE_270)) == turned
        assert predict_image(tiny, image) != turned

    @pytest.mark.parametrize(("image", "words"), [
        (np.zeros((3, 8, 8), np.uint8), r"\(H, W, 3\) uint8"),
        (np.zeros((8, 8, 3), np.float32), r"\(H, W, 3\) uint8"),
        (np.zeros((0, 8, 3), np.uint8), r"\(H, W, 3\) uint8"),
        (Image.new("I;16", (8, 8)), "more than 8 bits"),
    ])  # fmt: skip
    def test_what_is_not_an_image(self, tiny, image, words):
        with pytest.raises(DatasetError, match=words) as error:
            predict_image(tiny, image)
        assert one_line(error)

    def test_a_broken_file_is_named(self, tiny, tmp_path):
        (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
        with pytest.raises(DatasetError, match=r"broken\.jpg"):
            predict_image(tiny, tmp_path / "broken.jpg")

    @pytest.mark.parametrize("size", [(1, 1), (1, 700), (3000, 2)])
    def test_odd_sizes(self, tiny, size):
        assert len(predict_image(tiny, Image.new("RGB", size, "red"))) == 3

    def test_a_network_that_does_not_take_rgb(self, image_path):
        with pytest.raises(ConfigError, match="takes 1 channels"):
            predict_image(get_model(NAME, num_classes=2, in_channels=1, **SMALL), image_path)

    def test_a_path_may_start_at_the_home_folder(self, tiny, image_path, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / "photo.png").write_bytes(image_path.read_bytes())
        assert predict_image(tiny, "~/photo.png") == predict_image(tiny, image_path)

    def test_a_number_of_classes_that_is_not_one(self, tiny, image_path):
        for top in (0, None, "5", 1.5):
            with pytest.raises(ConfigError, match=f"top is {top!r}; it must be a positive integer"):
                predict_image(tiny, image_path, top=top)

    @pytest.mark.parametrize("network", [create_backbone(NAME, **SMALL), torch.nn.Conv2d(3, 2, 1)])
    def test_a_network_that_does_not_classify(self, network, image_path):
        with pytest.raises(ConfigError, match="gives no score of each class") as error:
            predict_image(network, image_path)
        assert one_line(error)
