"""The page of what was found in a data set: safe, bounded, and complete in itself."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from res2net_dense.findings import KINDS, REMEDIES, Finding, Findings
from res2net_dense.report.findings import MARK, Checked, ClassRow, page
from res2net_dense.report.marked import SIDE, Annotated, draw_file, draw_marked

GREY = 128


class Tags(HTMLParser):
    """The elements of a page and its text."""

    def __init__(self, text):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def checked(findings, show=lambda finding: (None, None), title="data"):
    found = Findings()
    for finding in findings:
        found.add(finding)
    return Checked(title, "some set", 3, found, show)


def black(width=64, height=48, **keys):
    return Annotated(np.zeros((height, width, 3), dtype=np.uint8), **keys)


def test_names_with_markup_escapes_and_turned_text_are_shown_as_text():
    name = '/d/<script>alert(1)</script>"onload=x\u202egpj.\x1b[31m\n.jpg'
    finding = Finding("image-unreadable", name, f"of {name}", name)
    text = page([checked([finding], title="<b>")], [ClassRow(0, "<i>", "<u>", [1])])
    tags = Tags(text)
    assert not {"script", "u"} & {tag for tag, _ in tags.found}
    assert not any(key.startswith("on") for _, attributes in tags.found for key in attributes)
    assert not re.search("[\x00-\x09\x0b-\x1f\u202a-\u202e\u2066-\u2069]", text)
    assert r"<script>alert(1)</script>" in tags.text
    assert r"\u202egpj.\x1b[31m\n.jpg" in tags.text


def test_the_page_needs_nothing_from_elsewhere():
    show = lambda finding: (black(), np.zeros((4, 4, 3), dtype=np.uint8))  # noqa: E731
    text = page([checked([Finding("mask-values", "/d/m.png", "values", "/d/i.jpg", 0)], show)], [])
    tags = Tags(text).found
    links = [attributes[key] for _, attributes in tags for key in ("src", "href") if key in attributes]
    assert len([link for link in links if link.startswith("data:image/webp;base64,")]) == 2
    assert all(link.startswith(("data:image/webp;base64,", "#")) for link in links)
    assert "url(" not in text
    assert "@import" not in text
    assert ("meta", {"name": "generator", "content": MARK}) in tags


def test_every_kind_that_was_found_is_in_the_table_and_has_its_section():
    findings = [Finding(code, "/d/f", "text of it") for code in KINDS]
    tags = Tags(page([checked(findings)], [], notes=True))
    links = [attributes["href"][1:] for tag, attributes in tags.found if tag == "a"]
    sections = [attributes["id"] for _, attributes in tags.found if "id" in attributes]
    assert sorted(links) == sorted(sections) == sorted(KINDS)
    severities = [KINDS[code].severity for code in links]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)
    text = " ".join(tags.text.split())
    assert all(kind.meaning in text for kind in KINDS.values())
    assert all(remedy in text for remedy in (REMEDIES[code] for code in KINDS))


def test_notes_are_counted_and_shown_when_asked_for():
    finding = Finding("area-missing", "/d/f", "annotation 1: it lacks its area")
    assert "1 note" in Tags(page([checked([finding])], [])).text
    assert "annotation 1" not in page([checked([finding])], [])
    assert "annotation 1" in page([checked([finding])], [], notes=True)


def test_each_kind_has_a_remedy():
    assert KINDS.keys() == REMEDIES.keys()


def test_the_page_is_bounded_whatever_is_found():
    generator = np.random.default_rng(0)
    noise = Annotated(generator.integers(0, 256, (320, 320, 3), dtype=np.uint8))
    codes = list(KINDS)[:14]
    findings = [Finding(c, f"/d/{n}.jpg", "x" * 300, f"/d/{n}.jpg", n) for c in codes for n in range(300)]
    text = page([checked(findings, lambda finding: (noise, None))], [], notes=True)
    assert len(text) < 15_000_000
    assert text.count("<img") <= 12 * len(codes)
    assert sum(map(len, re.findall(r'src="(data:[^"]*)"', text))) <= 9_000_000
    assert text.count("<li") <= 205 * len(codes)


def test_what_cannot_be_shown_is_listed():
    findings = [Finding("file-missing", f"/d/{n}.jpg", "not found", f"/d/{n}.jpg") for n in range(20)]
    tags = Tags(page([checked(findings)], []))
    assert "19.jpg" in tags.text
    assert not any(tag == "img" for tag, _ in tags.found)


def test_one_image_of_each_file_is_shown_first():
    findings = [Finding("box-tiny", "/d/a.json", "t", f"/d/{n}.jpg", n) for n in (0,) * 30 + (1, 2)]
    seen = []
    show = lambda finding: (seen.append(finding.place), (black(), None))[1]  # noqa: E731
    page([checked(findings, show)], [])
    assert seen[:3] == [0, 1, 2]
    assert len(seen) == 12


def colours(image):
    return {tuple(pixel) for pixel in np.asarray(image).reshape(-1, 3).tolist()}


def test_a_box_is_marked_and_the_others_are_thin():
    image = draw_marked(black(boxes=[(5, 5, 20, 20), (30, 10, 60, 40)]), (5, 5, 20, 20))
    assert image.size == (SIDE, 240)
    assert {(255, 40, 40), (96, 190, 255), (0, 0, 0)} <= colours(image)
    assert image.getpixel((25, 60)) == (255, 40, 40)
    assert image.getpixel((150, 100)) == (96, 190, 255)


@pytest.mark.parametrize("box", [(60, 10, 80, 30), (-20, -20, 5, 5), (90, 60, 95, 66)])
def test_what_lies_outside_the_image_is_shown_on_grey(box):
    found = colours(draw_marked(black(), box))
    assert {(GREY,) * 3, (255, 40, 40)} <= found


@pytest.mark.parametrize("box", [(1e12, 5, 1e13, 9), (-1e300, -1e300, 1e300, 1e300), (0.1, 0.2, 0.3, 0.4)])
def test_boxes_of_any_size_are_drawn_on_a_small_image(box):
    image = draw_marked(black(), box)
    assert max(image.size) <= SIDE
    assert min(image.size) > 100


def test_a_box_without_area_gets_a_ring():
    plain = np.asarray(draw_marked(black(), None))
    ringed = np.asarray(draw_marked(black(), (30, 20, 30, 20)))
    rows, columns = np.nonzero((plain != ringed).any(axis=2))
    assert np.ptp(rows) >= 30
    assert np.ptp(columns) >= 30


def test_masks_polygons_and_label_maps_are_drawn():
    mask = np.zeros((48, 64), dtype=bool)
    mask[10:30, 20:40] = True
    polygon = np.array([20.0, 10, 40, 10, 40, 30, 20, 30])
    for annotated in (black(masks=mask[None]), black(polygons=[polygon])):
        image = draw_marked(annotated, None)
        assert image.getpixel((100, 100)) == (255, 221, 51)
        assert image.getpixel((150, 100)) == (0, 0, 0)
    assert draw_marked(black(labels=mask.astype(np.uint8)), None).getpixel((150, 100)) == (64, 0, 0)


def test_a_mask_of_small_values_is_made_visible():
    image = draw_file(np.ones((2, 2, 3), dtype=np.uint8))
    assert colours(image) == {(255, 255, 255)}
    assert colours(draw_file(np.full((2, 2, 3), 200, dtype=np.uint8))) == {(200, 200, 200)}


def test_images_on_the_page_are_small():
    text = page(
        [checked([Finding("box-tiny", "/d/a", "t", "/d/i.jpg", 0)], lambda _: (black(4000, 30), None))], []
    )
    (data,) = re.findall(r"data:image/webp;base64,([^\"]*)", text)
    assert max(Image.open(io.BytesIO(base64.b64decode(data))).size) <= SIDE
