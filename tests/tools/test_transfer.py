"""The transfer demo: what is frozen stays and costs no gradients; its tables, its picture, its refusals."""

import re
from pathlib import Path

import pytest
import torch

from conv_ext.demo import transfer
from conv_ext.demo.data import load_digits
from conv_ext.models import resnet
from test_demo import outcome

CPU = torch.device("cpu")


def five():
    return load_digits().of_classes(transfer.NEW_CLASSES)


def test_images_of_some_classes():
    whole, some = load_digits(), five()
    assert some.classes == tuple("56789") and set(some.train_labels.tolist()) == set(range(5))
    assert len(some.test_labels) == sum(int((whole.test_labels == label).sum()) for label in range(5, 10))
    assert torch.equal(some.train_images[some.train_labels == 2], whole.train_images[whole.train_labels == 7])
    assert torch.equal(some.mean, whole.mean) and torch.equal(some.std, whole.std)
    few = some.first(12, seed=3)
    assert sorted(few.train_labels.bincount().tolist()) == [2, 2, 2, 3, 3]
    assert torch.equal(few.train_images, some.first(12, seed=3).train_images)
    assert not torch.equal(few.train_images, some.first(12, seed=4).train_images)
    everything = len(some.train_labels)
    assert len(some.first(everything, 0).train_labels) == everything
    with pytest.raises(ValueError, match=f"count must be an int from 1 to {everything}, got {everything + 1}"):
        some.first(everything + 1, 0)


@pytest.mark.parametrize("way, moved, passes", [
    ("feature extraction", {"output"}, {"forward": 3, "input_grad": 0, "weight_grad": 0}),
    ("fine-tuning", {"c5", "f6", "output"}, {"forward": 3, "input_grad": 0, "weight_grad": 1}),
    ("from scratch", {"c1", "c3", "c5", "f6", "output"}, {"forward": 3, "input_grad": 2, "weight_grad": 3}),
])  # fmt: skip
def test_what_is_frozen_stays_and_costs_nothing(way, moved, passes):
    images = five()
    base = transfer.fresh(images)
    net = transfer.started(way, base, images)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    if way != "from scratch":
        assert all(torch.equal(p, dict(base.named_parameters())[n]) for n, p in before.items() if "output" not in n)
    transfer.learn(net, images.first(40, 0), 3, 0, CPU)
    changed = {name.split(".")[0] for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert changed == moved
    assert transfer.passes(net, images, CPU) == passes


@pytest.mark.parametrize("steps, count", [(7, 40), (4, 200), (1, 10)])
def test_budget_is_kept(monkeypatch, steps, count):
    made = []
    step = transfer.Training._step
    monkeypatch.setattr(transfer.Training, "_step", lambda self, indices: made.append(indices) or step(self, indices))
    images = five()
    transfer.learn(transfer.fresh(images), images.first(count, 0), steps, 0, CPU)
    assert len(made) == steps


def test_command(tmp_path, capsys, monkeypatch):
    pytest.importorskip("tqdm")
    imread = pytest.importorskip("matplotlib.image").imread
    monkeypatch.setattr(transfer, "STEPS", 4)
    monkeypatch.setattr(transfer, "REPEATS", 2)
    monkeypatch.setattr(transfer, "COUNTS", (10, None))
    picture = tmp_path / "t.png"
    code, out, _ = outcome(capsys, "demo", "transfer", "--epochs", 1, "--threads", 1, "--out", picture)
    assert code == 0
    assert re.search(r"training images +10 +7\d\d\n", out)
    for way in transfer.WAYS:
        assert re.search(rf"  {way} +\d+\.\d %  +\d+\.\d %\n", out)
    assert re.search(r"feature extraction +3 +0 +0 +\d", out) and re.search(r"from scratch +3 +2 +3 +\d", out)
    assert imread(picture).std() > 0.05
    for options, message in (
        (("--data", "cifar10"), "transfer goes from digits to digits"),
        (("--network", "mnist_convnet"), "transfer goes from digits to digits"),
        (("--batch-size", 8), "leave --batch-size out"),
        (("--data", "mnist"), "--data mnist needs --root DIR"),
        (("--out", "a.jpg"), "--out must name a .png file"),
    ):
        code, out, err = outcome(capsys, "demo", "transfer", *options)
        assert code == 2 and message in err and out == ""
    code, _, err = outcome(capsys, "demo", "transport")
    assert code == 2 and "invalid choice: 'transport'" in err


def test_the_pages_counts_of_kernels():
    """docs/transfer.md: how often each kernel runs in a training step of ResNet-18, by what is free."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "transfer.md").read_text(encoding="utf-8")
    said = re.findall(r"^\| (.*?) \| (\d+) \| (\d+) \| (\d+) \|$", page, re.MULTILINE)
    free = {"everything": ("",), "the last stage and the last layer": ("layer4", "fc"), "the last layer": ("fc",)}
    assert [row[0] for row in said] == list(free)
    net = resnet(18, 5)
    x, labels = torch.randn(2, 3, 64, 64), torch.tensor([0, 1])
    for name, *counts in said:
        for parameter_name, parameter in net.named_parameters():
            parameter.requires_grad_(parameter_name.startswith(free[name]))
        assert list(transfer.counted(net, x, labels).values()) == [int(count) for count in counts], name
