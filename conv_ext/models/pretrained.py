"""Weights of torchvision's models for those networks here that have the same architecture and the same names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor, nn

from .layers import reshaped

__all__ = ["load"]

Network = TypeVar("Network", bound=nn.Module)


def load(network: Network, state_dict: Mapping[str, Tensor]) -> Network:
    """Copy `state_dict` into `network`; ValueError, before anything is copied, where names or shapes differ.

    Weights of full connections fit the convolutions that stand for them (layers.full_connection).
    """
    own = network.state_dict()
    state_dict = reshaped(own, state_dict)
    problems = [f"{name} is missing" for name in own if name not in state_dict]
    problems += [f"{name} is unknown here" for name in state_dict if name not in own]
    problems += [
        f"{name} is {list(state_dict[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in own.items()
        if name in state_dict and state_dict[name].shape != tensor.shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        shown = "; ".join(problems[:3]) + more
        raise ValueError(f"these are not the weights of such a {type(network).__name__}: {shown}")
    network.load_state_dict(state_dict)
    return network
