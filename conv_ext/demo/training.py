"""Training a classifier of images, epoch by epoch, with a record of every loss that can be compared."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import Images

COMPARED_STEPS = 20


@dataclass(frozen=True)
class Recipe:
    """How a network learns: stochastic gradient descent, by itself or with momentum (Nesterov's).

    falling: whether the rate falls to zero along a cosine, or stays as it is. distorted: whether training images are
    distorted anew in every epoch. biases_decay: whether weight decay holds for biases, too.
    """

    batch_size: int = 32
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-4
    falling: bool = True
    distorted: bool = True
    biases_decay: bool = True

    def plain(self) -> Recipe:
        """The same without distortions, at a fixed rate, with biases that do not decay."""
        return replace(self, falling=False, distorted=False, biases_decay=False)

    def optimizer(self, net: nn.Module, parameters: list[nn.Parameter] | None = None) -> torch.optim.SGD:
        """A fresh one for the parameters of `net`, or those of them that are given."""
        chosen = None if parameters is None else {id(parameter) for parameter in parameters}
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in net.named_parameters():
            if chosen is None or id(parameter) in chosen:
                spared = name.split(".")[-1] == "bias" and not self.biases_decay
                groups.setdefault(0.0 if spared else self.weight_decay, []).append(parameter)
        given = [{"params": of_group, "weight_decay": decay} for decay, of_group in groups.items()]
        nesterov = self.momentum > 0
        return torch.optim.SGD(given, self.learning_rate, self.momentum, nesterov=nesterov)

    def __str__(self) -> str:
        rate = f"rate {self.learning_rate:g}, {'falling to 0' if self.falling else 'fixed'}"
        decay = f"weight decay {self.weight_decay:g}" + ("" if self.biases_decay else " (not of biases)")
        images = "distorted images" if self.distorted else "images as they are"
        return f"{rate}; momentum {self.momentum:g}; {decay}; {images}"


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

    Accuracies are those of the images' test set: for a validation, give it `Images.split`'s first result.
    """

    def __init__(
        self, net: nn.Module, images: Images, *, epochs: int, recipe: Recipe, seed: int, device: torch.device,
        parameters: list[nn.Parameter] | None = None,
    ) -> None:  # fmt: skip
        self.net, self.images, self.device, self.epochs = net, images, device, epochs
        self.batch_size, self.distorted = recipe.batch_size, recipe.distorted
        self.steps = math.ceil(len(images.train_labels) / self.batch_size)  # of an epoch
        self.generator = torch.Generator().manual_seed(seed)
        self.optimizer = recipe.optimizer(net, parameters)
        # No warm-up: at its small steps the first losses hardly depend on the gradients, and comparing them would show
        # nothing (a mirrored gradient of the first layer moved them by 4e-5; without a warm-up by 5e-3).
        falling = torch.optim.lr_scheduler.CosineAnnealingLR
        self.schedule = falling(self.optimizer, epochs * self.steps) if recipe.falling else None
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
        history.accuracies.append(accuracy(evaluate(self.net, self.images, self.device), self.images))
        if bar is not None:
            self._show(bar)

    def _step(self, indices: Tensor) -> float:
        self.net.train()
        x, labels = (part.to(self.device) for part in self._batch(indices))
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.net(x), labels)
        loss.backward()
        self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()
        return loss.item()

    def _batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.images.training_batch(indices, self.generator if self.distorted else None)

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


def accuracy(scores: Tensor, images: Images) -> float:
    """The share of the test images whose class has the highest score."""
    return (scores.argmax(1) == images.test_labels).double().mean().item()


def largest_difference(first: list[float], second: list[float], steps: int = COMPARED_STEPS) -> float:
    """The largest relative difference of two runs' losses over the first `steps` steps; NaN if any is NaN."""
    pairs = list(zip(first, second, strict=True))[:steps]
    differences = [abs(a - b) / abs(a) if a else abs(b) for a, b in pairs]
    return math.nan if any(map(math.isnan, differences)) else max(differences)


def same_bits(first: History, second: History) -> bool:
    """Whether a repetition gave the same bits: each early loss and every weight that the early steps led to."""
    weights = zip(first.early_weights, second.early_weights, strict=True)
    return first.losses[:COMPARED_STEPS] == second.losses and all(torch.equal(a, b) for a, b in weights)
