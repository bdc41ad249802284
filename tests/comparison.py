"""What tests share that hold a network against a reference: `from comparison import ...`."""

import torch


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
