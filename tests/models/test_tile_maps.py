"""Maps of tiles blended into those of an image."""

import pytest
import torch

from res2net_dense.data.tiles import TileSize, starts
from res2net_dense.models import tile_maps
from res2net_dense.models.tile_maps import SaliencyMerger, SemanticMerger

SIZES = [
    (TileSize(32, 8), 104, 80),
    (TileSize(32, 20), 61, 64),
    (TileSize(40, 39), 47, 90),
    (TileSize(50, 0), 120, 50),
]


def merge(kind, size, height, width, key, give):
    tiles = size.grid(height, width)
    merger = kind(tiles[0], starts(height, *size), starts(width, *size))
    for tile in tiles:
        merger.add(tile, {key: give(tile)})
    assert not merger._pending, "nothing waits after the last tile"
    return merger.result()


def cut(values, tile):
    return values[..., tile.top : tile.top + tile.height, tile.left : tile.left + tile.width].clone()


@pytest.mark.parametrize(("size", "height", "width"), SIZES)
def test_what_all_tiles_agree_on_is_the_result(size, height, width):
    truth = torch.rand(height, width)
    found = merge(SaliencyMerger, size, height, width, "saliency", lambda tile: cut(truth, tile))["saliency"]
    assert found.dtype == torch.float32
    assert torch.allclose(found, truth, atol=1e-6)
    scores = torch.rand(5, height, width).softmax(0)
    found = merge(SemanticMerger, size, height, width, "probabilities", lambda tile: cut(scores, tile))[
        "sem_seg"
    ]
    assert found.dtype == torch.uint8
    assert torch.equal(found.long(), scores.argmax(0))


@pytest.mark.parametrize(("size", "height", "width"), SIZES)
def test_where_tiles_differ_the_result_changes_in_small_steps(size, height, width):
    found = merge(
        SaliencyMerger, size, height, width, "saliency",
        lambda tile: torch.full((tile.height, tile.width), float(tile.number % 2)),
    )["saliency"]  # fmt: skip
    assert (found.min(), found.max()) == (0, 1)
    if size.overlap == 8:
        across = found[5]  # of the first row of tiles
        assert (across.diff().abs() <= 1 / 8 + 1e-6).all()
        assert across[:24].max() == 0, "what one tile sees alone is as that tile has it"
        assert across[32:48].min() == 1


def test_only_what_tiles_to_come_see_too_waits():
    size, height, width = TileSize(32, 8), 320, 3200
    tiles = size.grid(height, width)
    merger = SaliencyMerger(tiles[0], starts(height, *size), starts(width, *size))
    most = 0
    for tile in tiles:
        merger.add(tile, {"saliency": torch.zeros(tile.height, tile.width)})
        most = max(most, sum(part.numel() for _, part in merger._pending.values()))
    assert most <= 8 * width + 2 * 32 * 32


def test_probabilities_of_another_size_are_resized_to_the_tile():
    size = TileSize(32, 8)
    truth = torch.zeros(2, 80, 80)
    truth[1, :, 40:] = truth[0, :, :40] = 1

    def shrunk(tile):
        return torch.nn.functional.avg_pool2d(cut(truth, tile), 2)

    found = merge(SemanticMerger, size, 80, 80, "probabilities", shrunk)["sem_seg"]
    assert found[:, :39].max() == 0
    assert found[:, 41:].min() == 1


def test_large_saliency_is_of_8_bits(monkeypatch):
    monkeypatch.setattr(tile_maps, "LARGE_PIXELS", 1000)
    truth = torch.rand(60, 60)
    found = merge(SaliencyMerger, TileSize(32, 8), 60, 60, "saliency", lambda tile: cut(truth, tile))[
        "saliency"
    ]
    assert found.dtype == torch.uint8
    assert (found / 255 - truth).abs().max() < 0.5 / 255 + 1e-6
