"""What a weight file is, by its content: read whatever it is called, or one line on what it is instead."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import re
import shlex
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from networks import TINY
from PIL import Image

from res2net_dense import cli, create_classifier
from res2net_dense.cli import convert
from res2net_dense.convert import read_checkpoint
from res2net_dense.errors import CheckpointError, ConfigError, Res2NetDenseError
from res2net_dense.weight_files import is_path, open_weights

STATE = {"a.weight": torch.arange(6000.0).reshape(60, 100), "a.bias": torch.ones(60)}


def as_torch(**keywords):
    buffer = io.BytesIO()
    torch.save(STATE, buffer, **keywords)
    return buffer.getvalue()


def as_zip(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def as_tar():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        content = as_torch()
        member = tarfile.TarInfo("net.pth")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def as_image(kind):
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(buffer, kind)
    return buffer.getvalue()


def as_npz():
    buffer = io.BytesIO()
    np.savez(buffer, a=np.ones(3))
    return buffer.getvalue()


SAFETENSORS = safetensors.torch.save(STATE, {"made": "here"})
PICKLES = {f"protocol {n}": pickle.dumps({"a": np.ones(2)}, n) for n in range(pickle.HIGHEST_PROTOCOL + 1)}
FOREIGN = {
    "git-lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 102400\n",
        "git-lfs pointer.*`git lfs pull`",
    ),
    "page": (b"\n <!DOCTYPE html><html></html>", "web page.*get it again"),
    "json": (b'{"message": "Not Found"}', r"text that begins '{\"message\": \"Not Found\"}'.*get it again"),
    "text": (b"Datei nicht gefunden: \xc3\xbcber\r\n" * 90, "text that begins 'Datei nicht gefunden: über"),
    "text cut in a letter": (b"x" * 511 + "ü".encode(), "text that begins 'xxx"),
    "gzip": (gzip.compress(as_torch()), "compressed.*unpack it"),
    "xz": (lzma.compress(as_torch()), "compressed.*unpack it"),
    "bzip2": (bz2.compress(as_torch()), "compressed.*unpack it"),
    "tar": (as_tar(), "tar archive.*unpack it"),
    "zip": (
        as_zip(**{"net/readme.txt": "hello", "net/net.pth": as_torch()}),
        "zip.*net/readme.txt.*unpack it",
    ),
    "empty zip": (as_zip(), "zip archive with nothing in it"),
    "npz": (as_npz(), r"zip archive with a\.npy"),
    "png": (as_image("PNG"), "is an image"),
    "jpeg": (as_image("JPEG"), "is an image"),
    "gif": (as_image("GIF"), "is an image"),
    "webp": (as_image("WEBP"), "is an image"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(500), "HDF5.*PyTorch or Paddle"),
    "onnx": (b"\x08\x07\x12\x07pytorch\x1a\x052.0.0" + bytes(99), "ONNX.*exported from"),
    "noise": (bytes(range(7, 207)) * 9, "begins with the bytes 07 08 09"),
    "zeros": (bytes(999), "begins with the bytes 00 00"),
    "one byte": (b"\x07", "bytes 07"),
}


def said(path, **keywords):
    with pytest.raises(CheckpointError) as caught:
        open_weights(path, **keywords)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message) < len(str(path)) * 3 + 270
    return message


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pkl", ".tar", ""])
@pytest.mark.parametrize("content", [SAFETENSORS, as_torch(), as_torch(_use_new_zipfile_serialization=False)])
def test_weights_are_read_whatever_the_file_is_called(tmp_path, content, suffix):
    path = tmp_path / f"net{suffix}"
    path.write_bytes(content)
    for trust in (False, True):
        read = open_weights(path, trust_pickle=trust).content
        assert read.keys() == STATE.keys()
        assert all(read[name].equal(STATE[name]) for name in STATE)
    assert open_weights(path).state_dict.keys() == STATE.keys()
    assert open_weights(path).metadata == ({"made": "here"} if content is SAFETENSORS else {})


@pytest.mark.parametrize("suffix", [".pth", ".bin", "", ".safetensors", ".pkl"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_what_else_a_file_is_whatever_it_is_called(tmp_path, kind, suffix):
    content, words = FOREIGN[kind]
    path = tmp_path / f"net{suffix}"
    path.write_bytes(content)
    if suffix not in (".safetensors", ".pkl") or kind not in ("noise", "zeros", "one byte"):
        assert re.search(words, said(path))
    said(path, trust_pickle=True)


@pytest.mark.parametrize("content", [b"", b"\0", bytes(range(7, 207)) * 9, b"\xff" * 99])
@pytest.mark.parametrize("suffix", [".safetensors", ".pkl", ".pdparams", ".pth"])
def test_rubbish_is_one_line(tmp_path, content, suffix):
    path = tmp_path / f"net{suffix}"
    path.write_bytes(content)
    said(path)
    said(path, trust_pickle=True)


@pytest.mark.filterwarnings("ignore:.*jit.*:FutureWarning", "ignore:.*jit.*:DeprecationWarning")
def test_a_torchscript_program(tmp_path, recwarn):
    path = tmp_path / "net.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    recwarn.clear()
    for trust in (False, True):
        message = said(path, trust_pickle=trust)
        assert "TorchScript program" in message
        assert "state_dict" in message
    assert len(recwarn) == 0
    # The remedy is what it says.
    remedy = message[message.index("torch.save(") :].replace("weights.pth", str(tmp_path / "weights.pth"))
    exec(remedy, {"torch": torch})  # noqa: S102  # our own message
    assert open_weights(tmp_path / "weights.pth").state_dict.keys() == {"weight", "bias"}


@pytest.mark.parametrize("content", [as_torch(), as_torch(_use_new_zipfile_serialization=False), SAFETENSORS])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_cut_off_wherever(tmp_path, content, suffix):
    path = tmp_path / f"net{suffix}"
    for length in (400, 600, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        if content[:2] == b"\x80\x02" and length < 600:
            continue  # hardly more than the names: no tensor has begun
        assert "cut off" in said(path), length


@pytest.mark.parametrize("length", [1, 5, 8, 9, 100, len(SAFETENSORS) - 1])
def test_a_short_safetensors_says_how_much_there_is(tmp_path, length):
    path = tmp_path / "net.safetensors"
    path.write_bytes(SAFETENSORS[:length])
    assert f"cut off after {length:,} bytes" in said(path)


@pytest.mark.parametrize("header", [
    b"{",
    b"{}x",
    b"[]",
    b'{"a": 1}',
    b'{"a": {}}',
    b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": []}}',
    b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, "x"]}}',
    b'{"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}',
])  # fmt: skip
def test_safetensors_with_a_broken_header(tmp_path, header):
    path = tmp_path / "net.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    assert "is damaged or not a weight file" in said(path)


@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".safetensors"])
@pytest.mark.parametrize("protocol", PICKLES)
def test_pickles_are_known_by_content_and_refused(tmp_path, protocol, suffix):
    path = tmp_path / f"net{suffix}"
    path.write_bytes(PICKLES[protocol])
    assert "would run code" in said(path)
    assert open_weights(path, trust_pickle=True).content["a"].tolist() == [1, 1]


def test_the_remedy_can_be_pasted(tmp_path, run_tool):
    path = tmp_path / "my net's" / "net.pkl"
    path.parent.mkdir()
    path.write_bytes(PICKLES["protocol 2"])
    command = said(path).split("`")[1]
    program, subcommand, *arguments = shlex.split(command)
    assert (program, subcommand) == ("res2net-dense", "convert")
    assert arguments == [str(path), f"{path}.safetensors", "--trust-pickle"]
    done = run_tool("tools/convert_checkpoint.py", *arguments)
    assert "names like a, none of a known dialect" in done.stderr  # it was read


def test_is_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd").touch()
    assert all(map(is_path, ["net.pth", "a/in1k", tmp_path, "net.safetensors", "odd", "net.pth.tar"]))
    assert not any(map(is_path, ["in1k", "imagenet", "res2net50_26w_4s.in1k", "", "other"]))


def test_metadata_is_what_the_safetensors_library_reads(tmp_path):
    (tmp_path / "net.bin").write_bytes(SAFETENSORS)
    with safetensors.safe_open(tmp_path / "net.bin", "pt") as file:
        assert open_weights(tmp_path / "net.bin").metadata == file.metadata() == {"made": "here"}


@pytest.fixture
def converter(monkeypatch, tmp_path):
    """`res2net-dense convert` in this process: its `main`, with the arguments by name."""
    monkeypatch.chdir(tmp_path)
    parser = cli.parser_of("convert", convert)

    def call(source, destination=None, *, overwrite=False, **options):
        words = [source, *filter(None, [destination]), *["--overwrite"] * overwrite]
        words += [word for name, value in options.items() for word in (f"--{name}", value)]
        return convert.main(parser.parse_args(words))

    return call


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(("arguments", "words"), [
    ({"report": "net.pth"}, "--report net.pth is the weight file itself"),
    ({"report": "./sub/../net.pth"}, "is the weight file itself"),
    ({"destination": "new.pth", "report": "new.pth"}, "is the weight file itself"),
    ({"report": "no/such/r.json"}, "--report no/such/r.json: there is no folder no/such"),
    ({"report": "sub"}, "--report sub is a folder"),
    ({"destination": "new.pth", "to": "tim"}, "timm"),
    ({"destination": "new.onnx"}, r"new\.onnx: weights are written as \.safetensors or \.pth"),
    ({"destination": "new"}, "written as"),
])  # fmt: skip
def test_the_converter_notices_wrong_arguments_first(tmp_path, converter, arguments, words, overwrite):
    """Before it reads: the source of this test is not a weight file."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "net.pth").write_bytes(b"no weights")
    with pytest.raises(Res2NetDenseError, match=words) as caught:
        converter("net.pth", overwrite=overwrite, **arguments)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.pth", "sub"]
    assert (tmp_path / "net.pth").read_bytes() == b"no weights"


def test_the_converter_overwrites_when_told(tmp_path, converter, capsys):
    torch.manual_seed(0)
    state = create_classifier(TINY, 2).state_dict()
    torch.save(state, tmp_path / "net.pth")
    for name in ("new.pth", "r.json"):
        (tmp_path / name).write_text("old")
        with pytest.raises(ConfigError, match=f"{name} exists already: .* with --overwrite"):
            converter("net.pth", **{"report" if name == "r.json" else "destination": name})
        assert (tmp_path / name).read_text() == "old"
    converter("net.pth", destination="new.pth", report="r.json", overwrite=True)
    assert json.loads((tmp_path / "r.json").read_text())["structure"]["num_classes"] == 2
    assert "written" in capsys.readouterr().out
    assert read_checkpoint("new.pth").state_dict["fc.weight"].equal(state["fc.weight"])


def test_the_converter_takes_the_backbone_it_is_told(tmp_path, converter, capsys):
    states = [create_classifier(TINY, 2).state_dict() for _ in range(2)]
    both = zip(("teacher.", "student."), states, strict=True)
    torch.save({prefix + key: value for prefix, state in both for key, value in state.items()}, "net.pth")
    with pytest.raises(CheckpointError, match="2 backbones"):
        converter("net.pth")
    converter("net.pth", destination="new.pth", prefix="student")
    assert "prefix 'student.'" in capsys.readouterr().out
    assert read_checkpoint("new.pth").state_dict["conv1.weight"].equal(states[1]["conv1.weight"])
