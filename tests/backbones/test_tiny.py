"""The networks for tests: small, recognised by their tensors, and in no list."""

import pytest
import torch

from res2net_dense import create_backbone, create_classifier, list_backbones, list_models
from res2net_dense.backbones.registry import TEST_ARCHITECTURES
from res2net_dense.backbones.weights import WEIGHTS
from res2net_dense.convert import read_checkpoint
from res2net_dense.errors import ConfigError

every_tiny = pytest.mark.parametrize("name", TEST_ARCHITECTURES)


@every_tiny
def test_they_are_small_and_no_list_has_them(name):
    assert sum(p.numel() for p in create_classifier(name, num_classes=10).parameters()) < 50_000
    assert name not in [*list_backbones(), *list_models()]
    assert name not in {row.name for row in WEIGHTS.values()}
    with pytest.raises(ConfigError) as error:
        create_backbone(name[:-1])
    assert "test_" not in str(error.value).split(";")[1]


@every_tiny
def test_a_file_is_recognised(name, tmp_path):
    torch.save(create_classifier(name, num_classes=10).state_dict(), tmp_path / "net.pth")
    found = read_checkpoint(tmp_path / "net.pth")
    assert (found.name, found.options) == (name, {})
    assert found.report.structure.planes == 4


def test_planes_are_of_the_stem_and_of_the_first_stage():
    network = create_backbone("res2net50_26w_4s", planes=16)
    assert network.conv1.out_channels == 16
    assert network.out_channels == {"res2": 64, "res3": 128, "res4": 256, "res5": 512}
    assert network.layer1[0].width == 6
    with pytest.raises(ConfigError, match="base_width is 4 and planes is 8: a split would have no channels"):
        create_backbone("res2next50", planes=8)
