"""Published weights: downloaded whole or not at all, loaded fully or refused. A local server stands for the
real one.
"""

import hashlib
import http.server
import threading

import pytest
import torch

import res2net_dense
from res2net_dense.backbones import weights
from res2net_dense.errors import CheckpointError


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A classifier's file as it is published, and its state dict."""
    path = tmp_path_factory.mktemp("published") / "weights.pth"
    state = res2net_dense.create_classifier("res2net50_26w_4s").state_dict()
    torch.save(state, path)
    return path, state


@pytest.fixture
def server(tmp_path):
    """A server of the files in a folder."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http_server:
        thread = threading.Thread(target=http_server.serve_forever, daemon=True)
        thread.start()
        yield folder, f"http://127.0.0.1:{http_server.server_port}/"
        http_server.shutdown()


def test_the_backbone_takes_all_but_the_head(published):
    path, state = published
    backbone = res2net_dense.create_backbone(
        "res2net50_26w_4s", out_features=("res2", "res4"), norm="FrozenBN"
    )
    weights.load_backbone_weights(backbone, "res2net50_26w_4s", path)
    for key, value in backbone.state_dict().items():
        assert value.equal(state[key]), key


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("res2net50_v1b_26w_4s", "missing"),  # another stem
        ("res2net50_14w_8s", "missing"),  # another scale
        ("res2net50_18w_4s", "of another shape"),  # another width
        ("res2net101_26w_4s", "missing"),
    ],
)
def test_the_wrong_network_is_refused_in_one_line(published, name, words):
    backbone = res2net_dense.create_backbone(name)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with pytest.raises(CheckpointError, match=words) as caught:
        weights.load_backbone_weights(backbone, name, published[0])
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(value.equal(before[key]) for key, value in backbone.state_dict().items())


def test_a_download_lands_whole_and_once(published, server, tmp_path, monkeypatch):
    folder, url = server
    digits = hashlib.sha256(published[0].read_bytes()).hexdigest()[:8]
    (folder / f"net-{digits}.pth").write_bytes(published[0].read_bytes())
    monkeypatch.setenv("RES2NET_DENSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(weights.IMAGENET, "res2net50_26w_4s", f"{url}net-{digits}.pth")
    backbone = res2net_dense.create_backbone("res2net50_26w_4s")
    weights.load_backbone_weights(backbone, "res2net50_26w_4s", "imagenet")
    assert backbone.conv1.weight.equal(published[1]["conv1.weight"])
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [f"net-{digits}.pth"]

    (folder / f"net-{digits}.pth").unlink()
    assert weights.fetch("res2net50_26w_4s") == tmp_path / "cache" / f"net-{digits}.pth"


def test_a_file_with_another_hash_is_not_kept(server, tmp_path):
    folder, url = server
    (folder / "net.pth").write_bytes(b"<html>please log in</html>")
    with pytest.raises(CheckpointError, match="instead of 06e79181"):
        weights.download(url + "net.pth", tmp_path / "cache" / "net.pth", sha256_prefix="06e79181")
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_a_server_the_way_by_hand_is_said(tmp_path):
    with pytest.raises(CheckpointError, match="download it elsewhere and put it at") as caught:
        weights.download("http://127.0.0.1:9/net.pth", tmp_path / "net.pth", sha256_prefix="0")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_what_was_never_published_is_said():
    with pytest.raises(CheckpointError, match="no ImageNet weights of res2net50_18w_4s are published"):
        weights.fetch("res2net50_18w_4s")


@pytest.mark.parametrize("name", weights.IMAGENET)
def test_the_table_names_known_backbones_and_carries_a_hash(name):
    assert name in res2net_dense.list_backbones()
    digits = weights.IMAGENET[name].rsplit("-", 1)[1].removesuffix(".pth")
    assert len(digits) == 8
    assert int(digits, 16) >= 0
