"""What tests of the timm integration share: `from timm_networks import ...`."""

import timm
import torch
from comparison import built
from networks import SMALL
from timm.layers import SEModule

import res2net_dense.integrations.timm  # noqa: F401  # registers the networks
from res2net_dense.backbones.registry import ARCHITECTURES

TWINS = {
    "res2net50_18w_4s": ("res2net50_26w_4s", {"base_width": 18}),
    "res2net152_v1b_26w_4s": ("res2net50d", {}),
    "se_res2net50_26w_4s": (
        "res2net50_26w_4s",
        {"block_args": {"scale": 4, "attn_layer": SEModule}},
    ),
}
"""Networks of ours that timm's parts can build too: a network of timm's, and what to change."""
IMAGES = torch.randn(2, 3, 65, 96, generator=torch.Generator().manual_seed(1))


def small(name, **options):
    """The registered network with one block a stage and few channels."""
    depths = ARCHITECTURES[name].options["depths"]
    return timm.create_model(name, **{**SMALL, "depths": SMALL["depths"][: len(depths)], **options})


def twins(name, **options):
    """The same call for timm's network and for ours, with the same weights, in evaluation mode."""
    theirs, changes = TWINS[name]
    options = {"layers": (1, 1, 2, 1), **options}
    reference = built(lambda: timm.create_model(theirs, **changes, **options)).eval()
    if ARCHITECTURES[name].options.get("stem") == "deep":
        options["avg_down_dilated"] = "same2"  # what timm's do
    ours = timm.create_model(name, **options).eval()
    ours.load_state_dict(reference.state_dict())
    return reference, ours
