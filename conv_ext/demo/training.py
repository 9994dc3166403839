"""Training a classifier of images, epoch by epoch, with a record of every loss that can be compared."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import Images

COMPARED_STEPS = 20


@dataclass(frozen=True)
class Recipe:
    """How a network learns: stochastic gradient descent, its rate falling to zero along a cosine."""

    batch_size: int = 32
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-4

    def optimizer(self, parameters: Any) -> torch.optim.SGD:
        """A fresh one for `parameters`."""
        nesterov = self.momentum > 0
        return torch.optim.SGD(parameters, self.learning_rate, self.momentum, 0, self.weight_decay, nesterov)


@dataclass
class History:
    """What one training run leaves: the loss of each step, and time and test accuracy of each epoch."""

    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    early_weights: list[Tensor] = field(default_factory=list)  # after the first COMPARED_STEPS steps

    def seconds_per_epoch(self) -> float:
        """The median, so that what happens only once (the first epoch's preparations) does not count."""
        return sorted(self.seconds)[len(self.seconds) // 2]


class Training:
    """The training of one network (or of those of its `parameters` that are given), epoch by epoch.

    Two trainings with equal weights and arguments see the same batches with the same distortions at the same learning
    rates: what differs between their losses is the networks' own doing.
    """

    def __init__(
        self, net: nn.Module, images: Images, *, epochs: int, recipe: Recipe, seed: int, device: torch.device,
        parameters: list[nn.Parameter] | None = None,
    ) -> None:  # fmt: skip
        self.net, self.images, self.device, self.epochs = net, images, device, epochs
        self.batch_size = recipe.batch_size
        self.steps = math.ceil(len(images.train_labels) / self.batch_size)  # of an epoch
        self.generator = torch.Generator().manual_seed(seed)
        self.optimizer = recipe.optimizer(net.parameters() if parameters is None else parameters)
        # No warm-up: at its small steps the first losses hardly depend on the gradients, and comparing them would show
        # nothing (a mirrored gradient of the first layer moved them by 4e-5; without a warm-up by 5e-3).
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, epochs * self.steps)
        self.history = History()

    def run_epoch(self, bar: Any = None, stop_after: int | None = None, tested: bool = True) -> None:
        """One pass over the training images, and a test; ends early, untested, when `stop_after` steps are made."""
        history = self.history
        begin = time.perf_counter()
        order = torch.randperm(len(self.images.train_labels), generator=self.generator)
        for indices in order.split(self.batch_size):
            if len(history.losses) == stop_after:
                return
            history.losses.append(self._step(indices))
            if len(history.losses) == COMPARED_STEPS:
                history.early_weights = [parameter.detach().clone() for parameter in self.net.parameters()]
            if bar is not None:
                self._show(bar)
                bar.update()
        if not tested:
            return
        history.seconds.append(time.perf_counter() - begin)
        correct = evaluate(self.net, self.images, self.device).argmax(1) == self.images.test_labels
        history.accuracies.append(correct.double().mean().item())
        if bar is not None:
            self._show(bar)

    def _step(self, indices: Tensor) -> float:
        self.net.train()
        x, labels = (part.to(self.device) for part in self.images.training_batch(indices, self.generator))
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.net(x), labels)
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        return loss.item()

    def _show(self, bar: Any) -> None:
        history = self.history
        recent = history.losses[-20:]
        epoch = math.ceil(len(history.losses) / self.steps)
        text = f"epoch {epoch}/{self.epochs}, loss {sum(recent) / len(recent):.4f}"
        if history.accuracies:
            text += f", accuracy {100 * history.accuracies[-1]:.2f} %"
        bar.set_postfix_str(text, refresh=False)  # the bar draws itself when its interval is over


@torch.no_grad()
def evaluate(net: nn.Module, images: Images, device: torch.device) -> Tensor:
    """The scores of all test images, on the CPU: (N, classes)."""
    net.eval()
    parts = torch.arange(len(images.test_labels)).split(500)
    return torch.cat([net(images.test_batch(part)[0].to(device)).cpu() for part in parts])


def largest_difference(first: list[float], second: list[float], steps: int = COMPARED_STEPS) -> float:
    """The largest relative difference of two runs' losses over the first `steps` steps; NaN if any is NaN."""
    pairs = list(zip(first, second, strict=True))[:steps]
    differences = [abs(a - b) / abs(a) if a else abs(b) for a, b in pairs]
    return math.nan if any(map(math.isnan, differences)) else max(differences)


def same_bits(first: History, second: History) -> bool:
    """Whether a repetition gave the same bits: each early loss and every weight that the early steps led to."""
    weights = zip(first.early_weights, second.early_weights, strict=True)
    return first.losses[:COMPARED_STEPS] == second.losses and all(torch.equal(a, b) for a, b in weights)
