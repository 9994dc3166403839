# %% [markdown]
"""
# Notebook 6: Why it is fast

The same sum, from three loops in Python to what the processor can do at most. Every step is measured on the machine
that runs this notebook; another machine gives other numbers.
"""

# %%
import itertools
import time

import torch

import conv_ext
from conv_ext import visualize

torch.set_num_threads(min(2, torch.get_num_threads()))


def best(function, seconds=0.3):
    """The shortest of several runs, in seconds: what else goes on in the machine only adds."""
    function()
    times, end = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return min(times)


# %% [markdown]
"""
## Loops

64 maps of 28 × 28, 64 kernels of 3 × 3: 28.9 million products for an image. In Python one of them takes as long as a
processor needs for thousands. We let Python do one output map of two input maps, and reckon.
"""

# %%
x, w = torch.randn(1, 64, 28, 28), torch.randn(64, 64, 3, 3)
products = 64 * 28 * 28 * 64 * 9
small_x, small_w = torch.randn(2, 12, 12).tolist(), torch.randn(2, 3, 3).tolist()


def loops():
    """One output map of 10 × 10."""
    y = [[0.0] * 10 for _ in range(10)]
    for p, q, c, r, s in itertools.product(range(10), range(10), range(2), range(3), range(3)):
        y[p][q] += small_w[c][r][s] * small_x[c][p + r][q + s]
    return y


rates = {"Python": 10 * 10 * 2 * 9 / best(loops)}
rate = rates["Python"]
print(f"Python: {rate / 1e6:.0f} million products a second; the layer would take {products / rate:.0f} s")

# %% [markdown]
"""
The same loops in C++, compiled, are the library's `reference`: the definition, that everything else is tested
against. And then what it takes by itself.
"""

# %%
with torch.no_grad():
    with conv_ext.algorithm("reference"):
        rates["reference"] = products / best(lambda: conv_ext.conv2d(x, w, padding=1))
    for name in ("direct", "panels", "implicit_gemm", "winograd"):
        try:
            with conv_ext.algorithm(name):
                rates[name] = products / best(lambda: conv_ext.conv2d(x, w, padding=1))
        except RuntimeError as error:  # one that this machine or this layer has not
            print(name, str(error).splitlines()[0])
for name, rate in rates.items():
    print(f"{name:<14} {rate / 1e9:9.3f} billion products a second")

# %% [markdown]
"""
## Lanes, tiles, cores

**Lanes.** A vector register holds 16 numbers of float32 (8 with AVX2), and one instruction multiplies and adds all of
them. For that, 16 neighbouring results have to need the same instruction: 16 output maps of one position, or 16
positions of one map.

**Tiles.** Two loads for each multiplication would leave the arithmetic waiting. A tile of, say, 28 positions × 16
maps is kept in registers, and each number that is loaded is used for a whole row or column of the tile.

**Caches.** Blocks of maps and positions are chosen so that what is read again is still near.

**Cores** take tiles of their own; no sum is ever divided among them, so that the same bits come out for any number.

`explain` says what was decided, and why not something else:
"""

# %%
print(str(conv_ext.explain(x, w, padding=1)).split("input_grad:")[0])  # of the forward pass

# %%
before = torch.get_num_threads()
for threads in (1, 2):
    torch.set_num_threads(threads)
    with torch.no_grad():
        seconds = best(lambda: conv_ext.conv2d(x, w, padding=1))
        y = conv_ext.conv2d(x, w, padding=1)
    torch.set_num_threads(before)
    print(f"{threads} thread(s): {seconds * 1e3:.2f} ms, sum of the result {y.double().sum():.10f}")

# %% [markdown]
"""
## A roofline of this machine

Two things bound every program: how many products a second the processor can form, and how many bytes a second can be
brought to it, from memory or from a cache. Which of them counts follows from the *intensity*: operations for each
byte that has to come. We measure the roofs, the flat one by a large product of matrices, the slopes by copies: one
that fits in no cache, and one that does.
"""

# %%
a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
peak = 2 * 1024**3 / best(lambda: a @ b, seconds=1)


def copied(megabytes):
    """Bytes a second that a copy reads and writes."""
    source = torch.zeros(int(megabytes * 2**18))
    target = torch.zeros_like(source)
    return 2 * 4 * source.numel() / best(lambda: target.copy_(source), seconds=1)


slopes = {"memory": copied(128), "cache": copied(0.5)}
print(f"{peak / 1e9:.0f} billion operations a second")
print(", ".join(f"{name} {bandwidth / 1e9:.1f} GB a second" for name, bandwidth in slopes.items()))

# %%
LAYERS = {
    "1 × 1, 256 → 64": (4, 256, 64, 28, 1, 1),
    "3 × 3, 64 → 64": (4, 64, 64, 28, 3, 1),
    "3 × 3, 3 → 64": (4, 3, 64, 56, 3, 1),
    "5 × 5, 16 → 32": (4, 16, 32, 28, 5, 1),
    "depthwise 3 × 3, 128": (4, 128, 128, 28, 3, 128),
}


def measured(n, c, k, side, taps, groups):
    """(operations for a byte, operations a second) of a forward pass."""
    x, w = torch.randn(n, c, side, side), torch.randn(k, c // groups, taps, taps)
    with torch.no_grad():
        y = conv_ext.conv2d(x, w, padding=taps // 2, groups=groups)
        seconds = best(lambda: conv_ext.conv2d(x, w, padding=taps // 2, groups=groups))
    operations = 2 * y.numel() * w[0].numel()
    return operations / (4 * (x.numel() + w.numel() + y.numel())), operations / seconds


points = {name: measured(*layer) for name, layer in LAYERS.items()}
figure = visualize.new_figure(8, 4.2)
axes = figure.subplots()
intensities = [2 ** (n / 4) for n in range(-4, 40)]
for (name, bandwidth), style in zip(slopes.items(), ("-", "--")):
    axes.loglog(intensities, [min(peak, i * bandwidth) / 1e9 for i in intensities], style, color="#171717", label=name)
for name, (intensity, rate) in points.items():
    axes.plot(intensity, rate / 1e9, "o")
    axes.annotate(name, (intensity, rate / 1e9), xytext=(6, -10), textcoords="offset points", fontsize=8)
axes.set_xlabel("operations for each byte of input, weights and output")
axes.set_ylabel("billion operations a second")
axes.grid(alpha=0.3, which="both")
axes.legend(frameon=False)
figure

# %% [markdown]
"""
A depthwise layer reads each number for a handful of products: no kernel can lift it above the slope of where its
operands lie. A 3 × 3 layer of many maps is where arithmetic counts. There a point may lie *above the flat roof*, for
two reasons: operations are counted as the definition has them, and minimal filtering forms fewer products; and where
the processor has matrix units, float32 is multiplied in parts by them, which the product of matrices above need not
do.

## Fewer products

F(2, 3): two outputs of three taps with four products in place of six ([mathematics.md](../mathematics.md) has it step
by step). In two dimensions 16 in place of 36.
"""

# %%
B_T = torch.tensor([[-1.0, 0, 1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, -1, 0, 1]])
G = torch.tensor([[-1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
A_T = torch.tensor([[1.0, 1, 1, 0], [0, 1, -1, 1]])
tile, kernel = torch.randn(4, 4), torch.randn(3, 3)
y = A_T @ ((G @ kernel @ G.T) * (B_T @ tile @ B_T.T)) @ A_T.T
torch.testing.assert_close(y, conv_ext.conv2d(tile[None, None], kernel[None, None])[0, 0])

# %% [markdown]
"""
## Matrix units

Newer processors multiply small matrices in one instruction. Intel's AMX takes tiles of 16 × 32 numbers of bfloat16, a
GPU's tensor cores similar ones. bfloat16 keeps float32's range and 8 bits of its 24, so three such numbers hold one
float32: a product of float32 is six products of parts. That is still faster where there is enough to multiply, and as
exact. What this machine has:
"""

# %%
info = conv_ext.build_info()
print("instruction sets:", ", ".join(info["isas_available"]), "| in use:", info["isa"])
x2, w2 = torch.randn(4, 128, 28, 28), torch.randn(128, 128, 3, 3)
operations = 2 * 4 * 128 * 28 * 28 * 128 * 9
with torch.no_grad():
    for dtype in (torch.float32, torch.bfloat16):
        xd, wd = x2.to(dtype), w2.to(dtype)
        plan = str(conv_ext.explain(xd, wd, padding=1)).splitlines()[1]
        rate = operations / best(lambda xd=xd, wd=wd: conv_ext.conv2d(xd, wd, padding=1))
        print(f"{dtype!s:<15} {rate / 1e9:7.0f} billion operations a second; {plan}")
    with conv_ext.precision("tf32"):
        rate = operations / best(lambda: conv_ext.conv2d(x2, w2, padding=1))
        print(f"{'float32, tf32':<15} {rate / 1e9:7.0f}; larger tiles of minimal filtering are allowed")

# %% [markdown]
"""
**To try:** `conv_ext.algorithm("direct")` for the layers of the roofline; a layer with one input map; one image
against sixteen. `python -m bench network` measures whole networks layer by layer, beside torch.
"""
