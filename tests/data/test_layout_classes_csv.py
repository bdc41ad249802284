"""Classes in a csv file: the forms that tools write, and defects under their own codes."""

import pytest
from PIL import Image
from reading import fails

from res2net_dense.config import parse_config
from res2net_dense.data.layouts import ClassesCsvPart, open_source
from res2net_dense.errors import DatasetError

NAMES = ("a.jpg", "b.jpg", "c.jpg")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "set").mkdir()
    for number, name in enumerate(NAMES):
        Image.new("RGB", (20, 10), (number, 0, 0)).save(tmp_path / "set" / name)
    Image.new("RGB", (20, 10)).save(tmp_path / "a.jpg")  # outside
    return tmp_path / "set"


def source_of(folder, text=None, *, file="labels.csv", train=True, strict=True, names=None, **part):
    if text is not None:
        (folder / file).write_text(text)
    part = ClassesCsvPart(csv=str(folder / file), **part)
    return open_source([part], train=train, needs=["label"], class_names=names, strict=strict)


def contents(source):
    """Names and labels."""
    samples = [source.sample(index) for index in range(len(source))]
    return [(sample["file_name"], sample["label"]) for sample in samples]


def codes(source):
    return {code: count for code, count in source.findings.counts.items() if code != "class-unused"}


@pytest.mark.parametrize(
    "text",
    [
        "filename,label\na.jpg,cat\nb.jpg,dog\nc.jpg,cat\n",
        "id,breed\na,cat\nb,dog\nc,cat\n",  # without suffix
        "a.jpg,cat\nb.jpg,dog\nc.jpg,cat\n",  # without a header
        "\ufeffimage_id;label\r\na.jpg;cat\r\nb.jpg;dog\r\nc.jpg;cat\r\n",
        "label\tfile\ncat\ta.jpg\ndog\tb.jpg\ncat\tc.jpg\n",
        "split,filename,class,width\nx,a.jpg,cat,20\nx,b.jpg,dog,20\nx,c.jpg,cat,20\n",
        "filename, cat, dog\na.jpg, 1, 0\nb.jpg, 0, 1\nc.jpg, 1, 0\n",  # Roboflow
        "filename,cat,dog\na.jpg,1.0,0.0\nb.jpg,,1\n\nc.jpg,1,\n",
        "filename,label\nphotos/a.jpg,cat\n./b.png,dog\nC.JPG,cat\n",
    ],
)
def test_every_form_gives_the_same_classes(folder, text):
    source = source_of(folder, text)
    assert list(source.class_names) == ["cat", "dog"]
    assert contents(source) == [("a.jpg", 0), ("b.jpg", 1), ("c.jpg", 0)]
    assert set(codes(source)) <= {"name-near"}


def test_numbers_are_in_the_order_of_numbers(folder):
    source = source_of(folder, "id,label\na,10\nb,9\nc,10\n")
    assert (list(source.class_names), source.labels.tolist()) == (["9", "10"], [1, 0, 1])


def test_a_single_column_of_zeros_and_ones_is_a_class(folder):
    assert list(source_of(folder, "id,label\na,0\nb,1\nc,0\n").class_names) == ["0", "1"]


def test_a_folder_has_the_usual_file(folder):
    (folder / "_classes.csv").write_text("filename,cat\na.jpg,1\n")
    (folder / "other.csv").write_text("")
    source = source_of(folder, file="")
    assert source.name == str(folder / "_classes.csv")
    (folder / "deep").mkdir()
    for name in ("other.csv", "third.csv"):
        (folder / "deep" / name).write_text("")
    fails(lambda: source_of(folder, file="deep"), "no _classes.csv; it has other.csv, third.csv")


def test_columns_and_images_may_be_named(folder, tmp_path):
    text = "when,what,who\n1,a.jpg,cat\n2,b.jpg,dog\n"
    source = source_of(folder, text, file_column="what", class_column="who", images=str(folder))
    assert list(source.class_names) == ["cat", "dog"]
    fails(
        lambda: source_of(folder, text, class_column="whom"),
        "no column 'whom' for class_column",
        "when, what",
    )
    fails(lambda: source_of(folder, text), "not clear which column it is for class_column")
    fails(lambda: source_of(folder, images=str(tmp_path / "no")), "image folder not found")


def test_images_and_classes_that_are_left_out_are_said(folder):
    source = source_of(folder, "filename,cat,dog\na.jpg,1,0\n", train=False)
    assert any(
        "1 of 2 classes have no image, such as dog; their accuracy is n/a" in one for one in source.remarks
    )
    assert source.findings.counts == {"class-unused": 1}
    assert any("2 images of" in one for one in source.remarks)


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("filename,cat,dog\na.jpg,1,1\nb.jpg,1,0\n", "classes-of-image", "'a.jpg' has the classes cat, dog"),
        ("filename,cat,dog\na.jpg,0,0\nb.jpg,1,0\n", "classes-of-image", "'a.jpg' has no class"),
        ("filename,label\na.jpg,\nb.jpg,cat\n", "classes-of-image", "line 2: 'a.jpg' has no class"),
        ("filename,label\nz.jpg,cat\nb.jpg,cat\n", "file-missing", "line 2: 'z.jpg' is not in"),
        ("filename,label\na.jpg,cat\na.jpg,cat\n", "duplicate-file-name", "line 3: 'a.jpg' is there twice"),
        (
            "filename,label\n../a.jpg,cat\nb.jpg,cat\n",
            "path-outside",
            "line 2: '../a.jpg' is not the path of an image inside",
        ),
        ("filename,label\n/etc/hosts,cat\nb.jpg,cat\n", "path-outside", "line 2"),
    ],
)
def test_a_wrong_line_has_its_own_code(folder, text, code, said):
    fails(lambda: source_of(folder, text), "labels.csv: ", said)
    source = source_of(folder, strict=False)
    assert codes(source) == {code: 1}
    assert len(source) == 1


def test_a_class_that_the_model_does_not_have(folder):
    text = "filename,label\na.jpg,cat\nb.jpg,dogs\n"
    fails(
        lambda: source_of(folder, text, names=["cat", "dog"]),
        "'dogs' is not one of the model's; did you mean dog",
    )
    assert source_of(folder, "filename,label\na.jpg,dog\n", names=["cat", "dog"]).labels.tolist() == [1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not a csv file of names and classes"),
        ("filename\na.jpg\n", "not a csv file of names and classes"),
        ("filename,label\n", "no images"),
        ("filename,label\na.jpg,cat,7\n", "line 2 has 3 columns, not 2"),
        ('filename,label\na.jpg,"cat\n', "not a csv file"),
    ],
)
def test_what_is_not_such_a_file(folder, text, said):
    fails(lambda: source_of(folder, text), "labels.csv: ", said)


def test_names_that_could_be_two_images_are_missing(folder):
    (folder / "deep").mkdir()
    Image.new("RGB", (20, 10)).save(folder / "deep/d.jpg")
    Image.new("RGB", (20, 10)).save(folder / "deep/d.png")
    fails(lambda: source_of(folder, "id,label\ndeep/d,cat\n"), "'deep/d' is not in", "there are 2 such files")


def test_a_link_out_of_the_folder_is_refused(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (folder / "a.jpg").rename(other / "a.jpg")
    (folder / "a.jpg").symlink_to(other / "a.jpg")
    source = source_of(folder, "filename,label\na.jpg,cat\nb.jpg,dog\n")
    with pytest.raises(DatasetError, match="leads out of the image folder"):
        source.sample(0)
    (finding,) = source.inspect(0, thorough=False)
    assert (finding.code, finding.place) == ("path-outside", 0)
    assert source.inspect(1, thorough=True) == []


def test_a_configuration_takes_the_path_of_a_csv_file(folder):
    config = parse_config(
        {
            "task": "classification", "backbone": {"name": "res2net50_26w_4s"},
            "data": {"train": f"{folder}/labels.csv"},
            "train": {"iterations": 1, "batch_size": 1, "optimizer": {"lr": 0.1}},
        }
    )  # fmt: skip
    assert config.data.train == [ClassesCsvPart(csv=f"{folder}/labels.csv")]
