"""What all networks share: the strides and dilations of their stages, the end of their construction, and
`forward`.

Modules with a `forward` do without `from __future__ import annotations`: torch.fx writes the annotations of
`forward` into its code, which TorchScript cannot read if they are strings.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from res2net_dense.backbones.bottle2neck import Bottle2neck
from res2net_dense.backbones.layers import freeze, init_weights, set_norm_eps
from res2net_dense.network_options import FEATURES, BackboneOptions


class StagePlan(NamedTuple):
    """How a stage shrinks its map."""

    stride: int
    """Of its first block."""
    dilation: int
    """Of all its blocks but the first."""
    previous_dilation: int
    """Of the stage before."""
    total_stride: int
    """Of its feature."""


def plan_stages(stem_stride: int, strides: Iterable[int], output_stride: int) -> Iterator[StagePlan]:
    """Plan stages of these strides: those that would exceed `output_stride` dilate instead."""
    total, dilation = stem_stride, 1
    for stride in strides:
        previous = dilation
        if total * stride > output_stride:
            stride, dilation = 1, dilation * stride
        total *= stride
        yield StagePlan(stride, dilation, previous, total)


class Backbone(nn.Module):
    """A network that returns named feature maps.

    Its children stand in the order they run, so that torchvision's `IntermediateLayerGetter` and
    `BackboneWithFPN` can take it apart.

    Attributes:
        out_features: names of the returned features, by depth.
        out_channels, out_strides: channels and stride of each returned feature.
        stages: names of the children that compute them.
        semantics: the options under which equal weights are another network, as built.
        dilation_rules: the same for those that act in dilated stages only; empty without one.
    """

    options_class: ClassVar[type[BackboneOptions]]
    stem_parts: ClassVar[tuple[str, ...]]
    """Names of the children with weights before the first stage."""
    stem_end: ClassVar[str]
    """Name of the child that computes the feature `stem`."""
    stage_names: ClassVar[tuple[str, ...]]

    def finish(
        self,
        options: BackboneOptions,
        channels: Sequence[int],
        strides: Sequence[int],
        dilation_rules: dict[str, object] | None = None,
    ) -> None:
        """End the construction: attributes, initial weights, what depends on a block's depth, frozen parts.

        Args:
            options: of the network.
            channels, strides: of the stem and of each stage that was built.
            dilation_rules: see the class.
        """
        wanted = [(FEATURES.index(feature), feature) for feature in options.wanted]
        built = self.stage_names[: len(channels) - 1]
        self.stages = [(self.stem_end, *built)[index] for index, _ in wanted]
        self._feature_of = dict(zip(self.stage_names, FEATURES[1:], strict=True))
        self.out_features = options.wanted
        self.out_channels = {feature: channels[index] for index, feature in wanted}
        self.out_strides = {feature: strides[index] for index, feature in wanted}
        self.semantics = options.semantics
        self.dilation_rules = dilation_rules or {}
        init_weights(self)
        blocks = [module for module in self.modules() if isinstance(module, Bottle2neck)]
        for index, block in enumerate(blocks):
            block.checkpointed = options.checkpoint_activations
            rate = options.drop_path_rate * index / max(1, len(blocks) - 1)
            block.drop_path = StochasticDepth(rate, "row") if rate > 0 else None
            scale = block.bn3.weight
            # A FrozenBN would never leave 0.
            if options.zero_init_residual and isinstance(scale, nn.Parameter):
                nn.init.zeros_(scale)
        set_norm_eps(self, options.norm_eps)
        parts = [self.stem_parts, *((stage,) for stage in built)]
        for name in (name for part in parts[: options.freeze_at] for name in part):
            setattr(self, name, freeze(getattr(self, name)))

    def forward_stem(self, x: Tensor) -> Tensor:
        """Compute the feature `stem`, the input of the first stage."""
        raise NotImplementedError

    def extract_features(self, x: Tensor) -> dict[str, Tensor]:
        """Compute the features.

        Args:
            x: `(N, in_channels, H, W)` float, normalized.

        Returns:
            `{feature: (N, out_channels[feature], ceil(H / stride), ceil(W / stride))}` in the order of depth.
        """
        x = self.forward_stem(x)
        features: dict[str, Tensor] = {}
        if "stem" in self.out_channels:
            features["stem"] = x
        for name, child in self.named_children():  # TorchScript unrolls it
            if name in self._feature_of:
                x = child(x)
                feature = self._feature_of[name]
                if feature in self.out_channels:
                    features[feature] = x
        return features

    forward: Callable[..., Any] = extract_features
    """Classifiers return logits."""
