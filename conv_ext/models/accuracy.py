"""How often the right class is among the k highest scores."""

from __future__ import annotations

import torch
from torch import Tensor

from .layers import count

__all__ = ["topk"]


def topk(scores: Tensor, labels: Tensor, k: int = 5) -> float:
    """The share of examples whose right class is among the `k` with the highest scores, from 0 to 1.

    The top-5 error that is reported for ImageNet is ``1 - topk(scores, labels, 5)``.

    scores: (N, classes), of any real dtype, before or after a softmax; labels: (N,), integers from 0. Classes of equal
    scores count as placed before the right one, so that a network that says the same of all classes knows nothing; nor
    does a score that is NaN.

    Raises ValueError for other shapes, no examples, a label that is no class, k below 1 or above the number of classes;
    TypeError where k is no int, labels are no integers, or either is no tensor of real values.
    """
    for name, tensor in (("scores", scores), ("labels", labels)):
        if not isinstance(tensor, Tensor) or tensor.is_complex() or tensor.is_meta:
            given = f"{tensor.dtype} on {tensor.device}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"{name} must be a tensor of real values, got {given}")
    if scores.dim() != 2 or labels.shape != scores.shape[:1] or not scores.numel():
        raise ValueError(
            f"expected scores (N, classes) and labels (N,), got {list(scores.shape)}, {list(labels.shape)}"
        )
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise TypeError(f"labels must be integers, got {labels.dtype}")
    classes, k = scores.shape[1], count("k", k)
    if k > classes:
        raise ValueError(f"k must be up to the number of classes, {classes}, got {k}")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels must be from 0 to {classes - 1}, got {labels.min().item()} to {labels.max().item()}")
    labels = labels.to(scores.device, torch.int64)[:, None]
    before = ~(scores < scores.gather(1, labels))  # the right class itself is one of these
    return (before.sum(1) <= k).double().mean().item()
