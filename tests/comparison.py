"""What tests share that hold a network against a reference: `from comparison import ...`."""

import torch
from networks import unfilled


def built(build, seed=0):
    """Build a network with random weights that excite every channel, as `like_trained` has them."""
    network, generator = unfilled(build), torch.Generator().manual_seed(seed)
    for value in network.state_dict().values():
        if value.ndim > 1:  # He's bound of a uniform distribution
            bound = (6 / value[0].numel()) ** 0.5
            value.uniform_(-bound, bound, generator=generator)
        else:
            value.zero_()
    return like_trained(network, seed)


def like_trained(network, seed=0):
    """Random weights that excite every channel: norm statistics and scales away from 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    state = network.state_dict()
    for key, value in state.items():
        if key.endswith("running_var"):
            state[key] = torch.rand(value.shape, generator=generator) + 0.5
        elif value.ndim == 1:
            state[key] = torch.rand(value.shape, generator=generator) * 0.8 + 0.2
    network.load_state_dict(state)
    return network


def difference(ours, theirs):
    """The largest difference as a part of the largest activation."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()
