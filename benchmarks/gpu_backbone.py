"""Whole networks in bfloat16 in every way to run them: ours, timm's, ResNet-50, compiled, as CUDA graphs.

python benchmarks/gpu_backbone.py [--device cuda] [--names NAME ...] [--settings 32x224x224 ...] [--json FILE]

All networks are classifiers that have the same random weights as their counterparts in timm, on normalized
images in float32. Every result is compared with float32 before it is timed. The ways to run a setting take
turns (see `res2net_dense.cli._benchmark`); ratios compare times of one turn, by median and middle half.
Compiling takes minutes: it comes last, in the order of --settings, as long as there is time.

  eager            under autocast, in the layout as it comes; channels-last in the other
  optimized        by `optimize_for_inference`, with the fused block where it is faster
  no-fused-block   the same without it
  graph            optimized, as a CUDA graph
  padded-8, -32    as graph, with splits of a multiple of so many channels
  packed           as graph, grouped convolutions of the two last stages as dense ones with zeros
  compiled         channels-last by torch.compile; optimized-compiled what is optimized; compiled-overhead
                   with mode reduce-overhead, compiled-tuned with max-autotune-no-cudagraphs
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from gpu_timing import Call, Part, captured
from torch import Tensor, nn

from res2net_dense.cli._benchmark import add_times, build, interleave, judge, on_timm, peak_memory
from res2net_dense.cli._model_table import multiply_adds
from res2net_dense.config import load_config
from res2net_dense.deploy.layers import FusedBottle2neck, FusedConv2d
from res2net_dense.deploy.rewrite import optimize_for_inference
from res2net_dense.errors import Res2NetDenseError, one_line
from res2net_dense.evaluation.tables import align

NAMES = ("res2net50_26w_4s", "res2net50_14w_8s", "res2net101_26w_4s")
SETTINGS = ((32, 224, 224), (2, 800, 1344), (1, 224, 224), (128, 224, 224))
RIVAL = "resnet50"
HALF = torch.bfloat16
COMPILE_SECONDS = 40.0
"""What a compilation is believed to take, until one has been measured."""
WAYS = {
    "timm": ("eager", "channels-last"),
    "ours": (
        *("channels-last", "optimized", "no-fused-block", "graph", "padded-8", "padded-32", "packed"),
        "graph-no-fused-block",
    ),
    RIVAL: ("eager", "channels-last", "optimized", "graph"),
}
COMPILED = (
    ("ours", "optimized-compiled"), ("timm", "compiled"), ("ours", "compiled"), (RIVAL, "compiled"),
    ("ours", "compiled-overhead"), ("timm", "compiled-overhead"), ("ours", "compiled-tuned"),
)  # fmt: skip
MODES = {"compiled-overhead": "reduce-overhead", "compiled-tuned": "max-autotune-no-cudagraphs"}


def main(arguments: Sequence[str] | None = None) -> int:
    part = Part(__doc__, 90)
    add = part.parser.add_argument
    add("--names", nargs="+", default=NAMES, help=f"of networks ({' '.join(NAMES)})")
    add("--settings", nargs="+", type=parse_setting, default=SETTINGS, help="images x height x width")
    add("--repeats", type=int, default=15, help="measured rounds (15)")
    add("--no-compile", action="store_true", help="leave out what is compiled")
    args = part.start(arguments)
    torch.backends.cudnn.allow_tf32 = False  # for what results are held against
    part.document = {"dtype": "bf16", "names": list(args.names)}
    bench = Bench(part)
    wrong = 0
    order = [(name, setting) for setting in args.settings for name in args.names]
    # First the network of the paper in all settings, then the others.
    order.sort(key=lambda pair: pair[0] != args.names[0])
    for name, setting in order:
        if part.left() < 5:
            part.add("left_out", f"{name} {setting}: no time left")
            continue
        wrong += bench.measure(name, setting)
    if not args.no_compile:
        for name, setting in order:
            wrong += bench.measure_compiled(name, setting)
    for line in part.document.get("left_out", []):
        print(f"left out: {line}")
    part.write()
    return int(wrong > 0)


def parse_setting(text: str) -> tuple[int, ...]:
    """`32x224x224` -> images, height, width."""
    numbers = text.split("x")
    if len(numbers) != 3 or not all(number.isdecimal() and int(number) for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is not images x height x width, such as 32x224x224")
    return tuple(map(int, numbers))


class Bench:
    """Networks, which are made once, and their turns."""

    def __init__(self, part: Part) -> None:
        self.part, self.device = part, part.args.device
        self.networks: dict[tuple[str, str], nn.Module] = {}
        self.made: dict[tuple[str, str, str], nn.Module] = {}
        self.compiled: dict[tuple[Any, ...], tuple[Call, dict[str, Any]]] = {}
        self.seconds_to_compile = COMPILE_SECONDS

    def network(self, name: str, net: str) -> nn.Module:
        """The network of a name as "ours", then as "timm" has it, or ResNet-50, in float32."""
        if net == "timm":
            self.network(name, "ours")
            return self.networks[name, net]
        wanted = RIVAL if net == RIVAL else name
        if (wanted, net) not in self.networks:
            config = load_config("classification_res2net50_imagenet", [f"backbone.name={wanted}"])
            model = build(config, wanted, False).to(self.device)
            self.networks[wanted, net] = model.get_submodule("backbone").requires_grad_(False)
            if net == "ours":
                theirs = on_timm(model, config.backbone).backbone
                self.networks[wanted, "timm"] = theirs.requires_grad_(False)
        return self.networks[wanted, net]

    def measure(self, name: str, setting: tuple[int, int, int]) -> int:
        """All ways that are not compiled; returns how many results are wrong."""
        pairs = [(net, way) for net, ways in WAYS.items() for way in ways]
        if not fused_block_is_there():
            pairs = [(net, way) for net, way in pairs if "no-fused-block" not in way]
        return self.turns(name, setting, pairs, "results")

    def measure_compiled(self, name: str, setting: tuple[int, int, int]) -> int:
        """Those that are compiled, as many as there is time for, against eager and graph."""
        torch._dynamo.reset()
        ready: list[tuple[str, str]] = []
        wrong = 0
        for net, way in COMPILED:
            if self.part.left() < 1.2 * self.seconds_to_compile + 5:
                self.part.add("left_out", f"{name} {setting} {net} {way}: no time left to compile")
                continue
            start = time.monotonic()
            call, _ = self.checked(name, net, way, setting)
            taken = time.monotonic() - start
            # The longest counts: what is begun and cut off is lost.
            known = self.seconds_to_compile != COMPILE_SECONDS
            self.seconds_to_compile = max(taken, self.seconds_to_compile) if known else taken
            wrong += call is None
            if call is not None:
                ready.append((net, way))
        if not ready:
            return wrong
        pairs = [("timm", "eager"), ("ours", "graph"), *ready]
        return wrong + self.turns(name, setting, pairs, "compiled_results")

    def turns(
        self, name: str, setting: tuple[int, int, int], pairs: Sequence[tuple[str, str]], key: str
    ) -> int:
        """Check and time ways to run a setting, and print the table; returns how many are wrong."""
        rows, calls, left_out, wrong = [], [], {}, 0
        for net, way in pairs:
            call, row = self.checked(name, net, way, setting)
            if call is None:
                left_out[row["label"]] = row["reason"]
                wrong += 1
                continue
            calls.append(call)
            rows.append(row)
        if not rows:
            return wrong
        add_times(rows, interleave(calls, warmup=2, repeats=self.part.args.repeats), setting[0])
        ours, one_image = self.network(name, "ours"), self.images((1, *setting[1:]))
        result = {
            "name": name, "batch": setting[0], "size": list(setting[1:]), "training": False,
            "baseline": rows[0]["label"], "rows": rows, "left_out": left_out,
            "macs": multiply_adds(lambda: ours(one_image)),
            "parameters": sum(parameter.numel() for parameter in ours.parameters()),
        }  # fmt: skip
        print("\n" + table(result), flush=True)
        self.part.add(key, result)
        return wrong

    def checked(
        self, name: str, net: str, way: str, setting: tuple[int, int, int]
    ) -> tuple[Call | None, dict[str, Any]]:
        """A call that has been compared with float32, and its row; None with the reason where it fails."""
        place, label = (name, net, way, setting), f"{net} {way} bf16"
        if place in self.compiled:
            return self.compiled[place]
        row: dict[str, Any] = {"label": label, "net": net, "format": way, "dtype": "bf16"}
        images = self.images(setting)
        try:
            with torch.inference_mode():
                expected = self.network(name, net)(images)
            call = torch.inference_mode()(self.call(name, net, way, images))
            call()
            found, row["peak_bytes"] = peak_memory(call, images.device)
            row["differs"] = judge(label, (found.float(),), (expected,))
        except Exception as error:  # a compiler raises anything
            kind = "" if isinstance(error, Res2NetDenseError) else f"{type(error).__name__}: "
            return None, row | {"reason": kind + one_line(error)}
        if "compiled" in way:  # which takes long
            self.compiled[place] = call, row
        return call, row

    def images(self, setting: Sequence[int]) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        number, height, width = setting
        return torch.randn(number, 3, height, width, generator=generator).to(self.device)

    def call(self, name: str, net: str, way: str, images: Tensor) -> Call:
        """Run a network in this way."""
        if way == "eager":
            return under_autocast(self.network(name, net), images)
        images = images.contiguous(memory_format=torch.channels_last)
        if way == "channels-last":
            return under_autocast(self.kept(name, net, "channels-last", in_channels_last), images)
        if way.startswith("compiled"):
            module = copy.deepcopy(self.kept(name, net, "channels-last", in_channels_last))
            module.compile(dynamic=False, **({"mode": MODES[way]} if way in MODES else {}))
            run = under_autocast(module, images)
            # With CUDA graphs the next call writes over the result.
            return (lambda: run().clone()) if way == "compiled-overhead" else run
        if way == "optimized-compiled":
            module = optimize_for_inference(self.network(name, net), dtype=HALF)
            module.compile(dynamic=False)
            return lambda: module(images)
        width = int(way.split("-")[1]) if way.startswith("padded") else None
        change = packed if way == "packed" else None
        key = way if width or change else "optimized"
        module = self.kept(name, net, key, lambda one: optimized(one, width, change))

        def run_optimized() -> Any:
            with without_fused_block() if way.endswith("no-fused-block") else nullcontext():
                return module(images)

        if way in ("optimized", "no-fused-block"):
            return run_optimized
        run_optimized()  # the choice of the fused block waits for the GPU, which a capture must not
        return captured(torch.inference_mode()(run_optimized), self.device)

    def kept(self, name: str, net: str, key: str, make: Callable[[nn.Module], nn.Module]) -> nn.Module:
        """What is made of a network, made once."""
        place = RIVAL if net == RIVAL else name, net, key
        if place not in self.made:
            self.made[place] = make(self.network(name, net))
        return self.made[place]


def table(result: dict[str, Any]) -> str:
    """One setting as text."""
    heads = [("", ""), ("median", "ms"), ("", "img/s"), ("peak", "MB"), ("differs", "by")]
    heads += [("times as fast as", result["baseline"]), ("time over that of", f"{RIVAL}, same way")]
    cells = list(map(list, zip(*heads, strict=True)))
    for row in result["rows"]:
        peak = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.0f}"
        ratios = [row["speedup"], row["over"].get(RIVAL)]
        shown = ["{median:.3f} [{low:.3f}, {high:.3f}]".format(**one) if one else "" for one in ratios]
        rate = f"{row['images_per_second']:.0f}"
        cells.append([row["label"], f"{row['median_ms']:.3f}", rate, peak, f"{row['differs']:.0e}", *shown])
    title = "{name}, batch {batch}, {size[0]}x{size[1]}".format(**result)
    left_out = [f"left out: {label}: {reason}" for label, reason in result["left_out"].items()]
    return "\n".join([title, align(cells), *left_out])


def in_channels_last(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network).to(memory_format=torch.channels_last)


def optimized(
    network: nn.Module, pad_width: int | None, change: Callable[[nn.Module], None] | None
) -> nn.Module:
    module = optimize_for_inference(network, dtype=HALF, pad_width=pad_width)
    if change:
        change(module)
    return module


def packed(network: nn.Module) -> None:
    """Make the grouped convolutions of the last two stages, whose maps are small, dense ones with zeros."""
    for name, module in network.named_modules():
        is_late = not {"layer3", "layer4"}.isdisjoint(name.split("."))
        if is_late and isinstance(module, FusedConv2d) and module.groups > 1:
            FusedConv2d.of(module, dense_weight(module), module.bias, relu=module.relu, groups=1)
            module.to(memory_format=torch.channels_last)


def dense_weight(conv: nn.Conv2d) -> Tensor:
    """`(out, in, h, w)` of a grouped convolution, 0 between its groups."""
    outside, inside = conv.out_channels // conv.groups, conv.in_channels // conv.groups
    weight = conv.weight.new_zeros(conv.out_channels, conv.in_channels, *conv.weight.shape[2:])
    for number, part in enumerate(conv.weight.detach().chunk(conv.groups)):
        rows = slice(number * outside, (number + 1) * outside)
        weight[rows, number * inside : (number + 1) * inside] = part
    return weight


def under_autocast(module: nn.Module, images: Tensor) -> Call:
    def run() -> Any:
        with torch.autocast(images.device.type, HALF):
            return module(images)

    return run


def fused_block_is_there() -> bool:
    return hasattr(FusedBottle2neck, "plain_splits")


@contextmanager
def without_fused_block() -> Iterator[None]:
    """Inside, blocks take PyTorch's operations."""
    plain: Any = FusedBottle2neck.plain_splits  # type: ignore[attr-defined]
    with mock.patch.object(FusedBottle2neck, "_multi_scale", plain_or_one(plain)):
        yield


def plain_or_one(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`_multi_scale` without the fused programs."""

    def multi_scale(block: Any, x: Tensor) -> Tensor:
        return block.conv2(x) if block.conv2 is not None else plain(block, x)

    return multi_scale


if __name__ == "__main__":
    sys.exit(main())
