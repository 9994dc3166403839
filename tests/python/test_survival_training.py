"""Long training: memory stays flat, nothing becomes NaN, and a second run gives the same bits.

CONV_EXT_SOAK_STEPS=10000 python -m pytest tests/python/test_survival_training.py   the long soak
"""

import os
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import conv_ext
from children import run_python
from passes import same_bits

STEPS = int(os.environ.get("CONV_EXT_SOAK_STEPS", "500"))
GROWTH = 4 << 20  # bytes, however many steps: what the allocator may keep more or less of


class Network(nn.Module):
    """Encoder and decoder with every kind of layer: dense, strided, depthwise, grouped, pointwise, transposed."""

    def __init__(self):
        super().__init__()
        self.first = conv_ext.Conv2d(3, 16, 3, padding=1, activation="relu")
        self.depthwise = conv_ext.Conv2d(16, 16, 5, padding=2, groups=16)
        self.pointwise = conv_ext.Conv2d(16, 24, 1, bias=False, activation="relu")
        self.grouped = conv_ext.Conv2d(24, 24, 3, stride=2, padding=1, groups=4, activation="relu")
        self.wide = conv_ext.Conv2d(24, 24, 3, padding="same", dilation=2)
        self.up = conv_ext.ConvTranspose2d(24, 12, 4, stride=2, padding=1)
        self.up_grouped = conv_ext.ConvTranspose2d(12, 6, 3, padding=1, groups=3)
        self.last = conv_ext.Conv1d(6, 3, 3, padding=1)

    def forward(self, x):
        y = self.grouped(self.pointwise(self.depthwise(self.first(x))))
        y = self.up_grouped(F.relu(self.up(y + self.wide(y))))
        return self.last(y.flatten(2)).reshape_as(x)


def resident():
    """Bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def train(steps, observe=lambda: None):
    """`steps` steps of denoising plain colours; the network and every loss.

    Batches of several sizes, in both memory formats; now and then by two threads.
    """
    torch.manual_seed(5)
    network = Network()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.005)
    losses = torch.empty(steps)
    for step in range(steps):
        torch.set_num_threads(2 if step % 50 == 49 else 1)
        clean = torch.rand(1 + step % 3, 3, 1, 1).expand(-1, -1, 12, 10 + 2 * (step % 2)).contiguous()
        noisy = clean + 0.1 * torch.randn_like(clean)
        if step % 5 == 0:
            noisy = noisy.contiguous(memory_format=torch.channels_last)
        optimizer.zero_grad()
        loss = F.mse_loss(network(noisy), clean)
        loss.backward()
        optimizer.step()
        losses[step] = loss.detach()
        observe()
    return network, losses


def test_long_training_keeps_its_memory_and_its_bits():
    sizes = []
    linux = sys.platform == "linux"
    network, losses = train(STEPS, lambda: sizes.append(resident()) if linux else None)
    assert losses.isfinite().all() and all(p.isfinite().all() for p in network.parameters())
    assert losses[-50:].mean() < losses[:50].mean() / 2, "it learns nothing, so nothing was tested"
    if linux:
        warm = max(sizes[: STEPS // 5])
        grown = max(sizes[-(STEPS // 5) :]) - warm
        print(f"{STEPS} steps: {warm >> 10} KiB, then {grown >> 10} KiB more; loss {losses[-50:].mean():.5f}")
        assert grown < GROWTH, f"{grown} bytes more at the end"
    again, losses_again = train(STEPS)
    assert same_bits(losses, losses_again)
    assert all(same_bits(a.detach(), b.detach()) for a, b in zip(network.parameters(), again.parameters()))


def keep_a_small_tensor_each_step():
    """By how many bytes the process grows."""
    before = resident()
    # 32 KiB each, the gradient of a layer that somebody holds on to.
    kept = [torch.ones(8192) for _ in range(min(STEPS, 500))]
    return resident() - before if len(kept) else 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads the size where Linux shows it")
def test_a_leak_would_be_seen():
    """The same measure on what keeps one small tensor a step, in a process that has no freed memory to take it from."""
    child = run_python(
        "-c",
        "import test_survival_training as t; print(t.keep_a_small_tensor_each_step())",
    )
    assert child.returncode == 0, child.stderr
    assert int(child.stdout) > 2 * GROWTH
