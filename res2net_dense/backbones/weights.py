"""Published ImageNet weights: where they are, how they are checked, and how they enter a backbone.

A file is downloaded once into `RES2NET_DENSE_CACHE` (default `~/.cache/res2net_dense`), and only under its
final name when its SHA-256 is right. The files are the authors' and not part of this package; their licence
is CC BY-NC-SA 4.0 or unknown.
"""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from pathlib import Path

from torch import nn
from tqdm import tqdm

from res2net_dense.backbones.registry import canonical_name
from res2net_dense.errors import CheckpointError
from res2net_dense.weight_files import load_strictly, load_weights

OFFICIAL = "https://shanghuagao.oss-cn-beijing.aliyuncs.com/res2net/"

IMAGENET: dict[str, str] = {
    "res2net50_26w_4s": OFFICIAL + "res2net50_26w_4s-06e79181.pth",
    "res2net50_48w_2s": OFFICIAL + "res2net50_48w_2s-afed724a.pth",
    "res2net50_14w_8s": OFFICIAL + "res2net50_14w_8s-6527dddc.pth",
    "res2net50_26w_6s": OFFICIAL + "res2net50_26w_6s-19041792.pth",
    "res2net50_26w_8s": OFFICIAL + "res2net50_26w_8s-2c7c9f12.pth",
    "res2net101_26w_4s": OFFICIAL + "res2net101_26w_4s-02a759a1.pth",
    "res2next50": OFFICIAL + "res2next50_4s-6ef7e7bf.pth",
    "res2net50_v1b_26w_4s": OFFICIAL + "res2net50_v1b_26w_4s-3cf99910.pth",
    "res2net101_v1b_26w_4s": OFFICIAL + "res2net101_v1b_26w_4s-0812c246.pth",
}
"""The official file of each backbone; the eight digits in its name are the first of its SHA-256."""


def load_backbone_weights(module: nn.Module, name: str, weights: str | Path) -> None:
    """Load `weights` into `module`, a network built under `name`, in place.

    Args:
        module: a `Res2Net` or `Res2NetClassifier`.
        name: the backbone's name, for the lookup of a tag.
        weights: "imagenet" for the published file, or the path of a .pth, .pt or .safetensors file with the
            published keys.

    Raises:
        CheckpointError: no such file or tag, or the file's tensors are not exactly those of the network. Left
            out without a complaint are only the classifier head, and stages that the backbone does not build.
    """
    path = fetch(name) if weights == "imagenet" else Path(weights)
    own = module.state_dict()
    built = {key.split(".")[0] for key in own}
    left_out = {"fc", "layer1", "layer2", "layer3", "layer4"} - built
    # Some files leave the counters of batches out, and a FrozenBN has none.
    counters = {key: value for key, value in own.items() if key.endswith("num_batches_tracked")}
    state = {
        key: value
        for key, value in load_weights(path).items()
        if key.split(".")[0] not in left_out and (key in own or not key.endswith("num_batches_tracked"))
    }
    load_strictly(module, {**counters, **state}, source=f"{path}, given as weights of {name},")


def fetch(name: str) -> Path:
    """Return the local path of the published weights of `name`, downloading them if they are not in the
    cache.

    Raises:
        CheckpointError: nothing is published under the name, or the download failed; the message has the way
            by hand.
    """
    name = canonical_name(name)
    if name not in IMAGENET:
        raise CheckpointError(
            f"no ImageNet weights of {name} are published; train from scratch (weights: null) "
            f"or choose one of {', '.join(IMAGENET)}"
        )
    url = IMAGENET[name]
    file_name = url.rsplit("/", 1)[1]
    cache = Path(os.environ.get("RES2NET_DENSE_CACHE", "~/.cache/res2net_dense")).expanduser()
    path = cache / file_name
    digits = Path(file_name).stem.rsplit("-", 1)[1]
    if not path.exists():
        download(url, path, sha256_prefix=digits)
    return path


def download(url: str, path: Path, *, sha256_prefix: str, timeout: float = 30.0) -> None:
    """Download `url` to `path`; the file appears there only whole and with the right hash.

    Raises:
        CheckpointError: the server cannot be reached, or what came is not the file.
    """
    by_hand = f"download it elsewhere and put it at {path}"
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    digest = hashlib.sha256()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=timeout) as answer, part.open("wb") as file:
            length = int(answer.headers.get("Content-Length") or 0)
            with tqdm(total=length or None, unit="B", unit_scale=True, desc=path.name, disable=None) as bar:
                while chunk := answer.read(1 << 20):
                    file.write(chunk)
                    digest.update(chunk)
                    bar.update(len(chunk))
        if not digest.hexdigest().startswith(sha256_prefix):
            raise CheckpointError(
                f"{url} sent {part.stat().st_size:,} bytes whose SHA-256 begins with "
                f"{digest.hexdigest()[:8]} instead of {sha256_prefix}; nothing was kept, {by_hand}"
            )
        os.replace(part, path)
    except (OSError, urllib.error.URLError) as error:
        raise CheckpointError(f"cannot download {url} ({error}); {by_hand}") from error
    finally:
        part.unlink(missing_ok=True)
