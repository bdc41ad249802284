"""`--config` takes a path, or the name of a configuration that comes with the package."""

from __future__ import annotations

from pathlib import Path

import pytest

from res2net_dense.config import load_config
from res2net_dense.config.find import config_names, find_config
from res2net_dense.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"


def message(name: str) -> str:
    with pytest.raises(ConfigError) as error:
        load_config(name)
    text = str(error.value)
    assert "\n" not in text
    return text


def test_every_shipped_config_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = config_names()
    assert {"mask_rcnn_res2net50", "quick/mask_rcnn_res2net50"} <= set(names)
    assert not [name for name in names if "_base_" in name]
    for name in names:
        assert find_config(name).samefile(CONFIGS / f"{name}.yaml")
    assert load_config("quick/mask_rcnn_res2net50") == load_config(CONFIGS / "quick/mask_rcnn_res2net50.yaml")


def test_a_file_comes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mask_rcnn_res2net50").write_text("task: nothing")
    assert "expected one of" in message("mask_rcnn_res2net50")
    (tmp_path / "quick").mkdir()  # a folder does not
    assert load_config("quick/mask_rcnn_res2net50").task == "detection"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mask_rcnn_res2net5", ["no configuration of this name", "mask_rcnn_res2net50"]),
        ("configs/quick/mask_rcnn_res2net50.yaml", ["no such file", "is quick/mask_rcnn_res2net50"]),
        ("mask_rcnn_res2net50.yaml", ["no such file", "is mask_rcnn_res2net50"]),
        ("mine.yaml", ["no such file in"]),
        ("../quick/x", ["no such file", "nearest:"]),
        ("a\nb", ["no such file"]),
    ],
)
def test_what_is_not_found(
    name: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = message(name)
    assert all(word in text for word in words), text
