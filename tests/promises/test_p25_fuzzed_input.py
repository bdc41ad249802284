"""P25: whatever stands in an annotation file or a configuration, errors are ours and come soon.

Mutated files are opened as a training does and as a check does, and all their samples are looked at.
"""

import contextlib
import copy
import itertools
import json
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from res2net_dense.config import load_config
from res2net_dense.data.layouts import CocoPart, VocBoxesPart, open_source
from res2net_dense.errors import Res2NetDenseError

DOCUMENT = {
    "images": [{"id": n, "file_name": f"{n}.png", "width": 32, "height": 24} for n in (1, 2)],
    "categories": [
        {"id": 1, "name": "crab", "supercategory": "sea", "keypoints": ["nose"]},
        {"id": 2, "name": "gull"},
    ],
    "annotations": [
        {"id": n, "image_id": n // 2 + 1, "category_id": n // 2 + 1, "bbox": [2.0, 3.0, 9.0, 8.0],
         "area": 72.0, "iscrowd": 0, "segmentation": [[2, 3, 11, 3, 11, 11, 2, 11]],
         "keypoints": [4, 4, 2], "num_keypoints": 1}
        for n in (1, 2)
    ] + [
        {"id": 3, "image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "iscrowd": 1,
         "segmentation": {"size": [24, 32], "counts": [100, 20, 648]}},
    ],
}  # fmt: skip
XML = (
    "<annotation><folder>f</folder><filename>1.png</filename><size><width>32</width><height>24</height>"
    "<depth>3</depth></size><object><name>crab</name><difficult>0</difficult><bndbox><xmin>2</xmin>"
    "<ymin>3</ymin><xmax>11</xmax><ymax>11</ymax></bndbox></object></annotation>"
)
CONFIGS = Path(__file__).parents[2] / "configs"
YAML = (CONFIGS / "small/faster_rcnn_res2net50_voc.yaml").read_text().replace("../", f"{CONFIGS}/")
PIECES = [
    "!!python/object/apply:os.system [ls]", "&a [*a, *a]", "\t", "<!DOCTYPE a>", "<![CDATA[", "&x;", "\0",
    "1e400", "-1", "9" * 400, "nan", "null", "{}", "[" * 200, "../../etc/passwd",
    "\u202e", "\ud83d", "~", "_base_: .",
]  # fmt: skip

numbers = st.one_of(
    st.integers(), st.floats(), st.sampled_from([0, -1, 2**31, 2**63, 10**400, 1e308, -0.0, True, False])
)
values = st.recursive(
    st.one_of(st.none(), numbers, st.text(max_size=20), st.sampled_from(PIECES)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(value, path=()):
    """The path of everything in a document."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


@st.composite
def documents(draw):
    """The document with one to three changes."""
    document = copy.deepcopy(DOCUMENT)
    for _ in range(draw(st.integers(1, 3))):
        *path, key = draw(st.sampled_from([path for path in places(document) if path] or [("images",)]))
        holder = document
        for step in path:
            holder = holder[step]
        if draw(st.booleans()) or not isinstance(holder, dict):
            holder[key] = draw(values)
        else:
            holder.pop(key, None)
    return json.dumps(document).encode(errors="surrogatepass")


@st.composite
def texts(draw, text):
    """The text in bytes, with one to three parts of it cut out, repeated or replaced."""
    data = text.encode()
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 40)))
        piece = draw(
            st.one_of(
                st.just(b""),
                st.just(data[start:end] * 2),
                st.binary(max_size=6),
                st.sampled_from(PIECES).map(lambda piece: piece.encode(errors="surrogatepass")),
            )
        )
        data = data[:start] + piece + data[end:]
    return data


FILES = {
    "coco": st.one_of(documents(), texts(json.dumps(DOCUMENT))),
    "xml": texts(XML),
    "yaml": texts(YAML),
}
CLEAN = {"coco": json.dumps(DOCUMENT).encode(), "xml": XML.encode(), "yaml": YAML.encode()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two images in the folder that both layouts take."""
    folder = tmp_path_factory.mktemp("fuzzed")
    (folder / "JPEGImages").mkdir()
    for number in (1, 2):
        Image.new("RGB", (32, 24)).save(folder / "JPEGImages" / f"{number}.png")
    return folder


_number = itertools.count()  # files are read once, by their names


def look_at(part, strict):
    source = open_source([part], train=True, needs=part.gives, strict=strict)
    for index in range(len(source)):
        for finding in source.inspect(index, thorough=True):
            assert finding.severity
        source.sample(index)
    assert all("\n" not in str(finding) for finding in source.findings)


def open_coco(folder, data, strict):
    file = folder / f"{next(_number)}.json"
    file.write_bytes(data)
    look_at(CocoPart(annotations=str(file), images=str(folder / "JPEGImages")), strict)


def open_voc(folder, data, strict):
    name = f"xml{next(_number)}"
    (folder / name).mkdir()
    (folder / name / "1.xml").write_bytes(data)
    look_at(VocBoxesPart(root=str(folder), split=None, annotations=name), strict)


def open_yaml(folder, data, strict):
    file = folder / f"{next(_number)}.yaml"
    file.write_bytes(data)
    load_config(file)


OPEN = {"coco": open_coco, "xml": open_voc, "yaml": open_yaml}


def fuzz(kind, folder, examples):
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(FILES[kind], st.booleans())
    def one(data, strict):
        start = time.process_time()  # other programs on the machine do not count
        try:
            OPEN[kind](folder, data, strict)
        except Res2NetDenseError as error:
            assert "\n" not in str(error)  # noqa: PT017  # all others are failures
        assert time.process_time() - start < 2

    for strict in (True, False):
        OPEN[kind](folder, CLEAN[kind], strict)  # libraries are imported once
    one()


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("part", ["images", "categories", "annotations"])
def test_bytes_that_are_not_text_give_errors_of_ours(part, strict, folder):
    data = json.dumps({**DOCUMENT, part: [{"x": "bad", **entry} for entry in DOCUMENT[part]]}).encode()
    with contextlib.suppress(Res2NetDenseError):
        open_coco(folder, data.replace(b"bad", b"\xff"), strict)


@pytest.mark.parametrize("kind", FILES)
def test_200_mutated_files_give_errors_of_ours_within_2_seconds(kind, folder):
    fuzz(kind, folder, 200)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILES)
def test_2000_mutated_files_give_errors_of_ours_within_2_seconds(kind, folder):
    fuzz(kind, folder, 2000)
