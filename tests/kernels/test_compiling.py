"""The programs compiled for GPUs that are not here: what they need of registers and shared memory."""

import pytest
import torch

pytest.importorskip("triton")
from compiling import compile_launch, launches

from res2net_dense.kernels import Chain, Trained, launch, pack_weights
from res2net_dense.kernels.launch import tiles

STAGE = {"independent": True, "pool": "counted"}
# Chain, size of its map: narrow and wide, of a stage's first and other blocks, with groups.
CHAINS = [
    (Chain(26, 4), (56, 56)),
    (Chain(208, 4, stride=2, **STAGE), (14, 14)),
    (Chain(112, 8), (7, 7)),
]
MORE = [
    *((Chain(width, 4), (56, 56)) for width in (4, 14, 18, 25, 28, 36, 48, 52, 56)),
    *((Chain(width, 4), (14, 14)) for width in (72, 96, 104, 144, 192, 384)),
    *((Chain(width, 4, **STAGE), (14, 14)) for width in (14, 25, 26, 48, 104)),
    (Chain(25, 4), (14, 14)),  # in one launch too; no published network has odd widths
    *((Chain(width, 4, 2, 1, 8, **STAGE), (14, 14)) for width in (32, 64, 128, 256, 512)),
    *((Chain(width, 4, 1, 2, 8), (14, 14)) for width in (32, 64, 128, 200, 256)),
    (Chain(26, 4, 2, pool="ignored", independent=True), (56, 56)),
]  # fmt: skip
SHARED = 99 * 1024
"""Bytes that the GPUs from 8.0 on have at least for a program, those for games too."""


def all_launches(monkeypatch, chain, size, dtype):
    """Those of inference and training, in every way that is measured."""
    parts, width = chain.scale - 1, chain.width
    x = torch.empty(32, width * chain.scale, *size, dtype=dtype, device="meta")
    x = x.to(memory_format=torch.channels_last)
    weight = pack_weights([torch.empty(width, chain.group, 3, 3, device="meta")] * parts, dtype)
    vector = torch.empty(width, device="meta")
    norm = Trained(*[vector] * 4, 1e-5, 0.1)
    affine = torch.empty(4, parts, width, device="meta")

    def run():
        for tile in tiles(chain, dtype, x.shape):
            y = launch.infer(x, chain, weight, affine, tile)
            launch.backward(y, x, y, chain, weight, affine, None, tile, True, [False] * parts)
            y, z, statistics = launch.train(x, chain, weight, [norm] * parts, tile)
            launch.backward(y, x, y, chain, weight, statistics, z, tile, True, [False] * parts)

    calls = launches(monkeypatch, run)
    assert len({program.__name__ for program, _, _ in calls}) >= 5
    different = {}
    for program, arguments, keywords in calls:
        constants = [
            value for value, kind in zip(arguments, program.params, strict=False) if kind.is_constexpr
        ]
        different[program.__name__, str(constants), str(keywords)] = program, arguments, keywords
    return different.values()


@pytest.mark.parametrize(
    ("chains", "dtype", "capability"),
    [
        (CHAINS[:1], torch.bfloat16, 90),
        *(
            pytest.param(CHAINS + MORE, dtype, capability, marks=pytest.mark.slow, id=f"{dtype}-{capability}")
            for dtype in (torch.bfloat16, torch.float16, torch.float32)
            for capability in (80, 90)
        ),
    ],
)
def test_programs_fit(chains, dtype, capability, monkeypatch):
    too_much = []
    for chain, size in chains:
        for program, arguments, keywords in all_launches(monkeypatch, chain, size, dtype):
            made = compile_launch(program, arguments, keywords, capability)
            if made.spilled or made.shared > SHARED:
                too_much.append((chain, keywords, made))
    assert too_much == []
