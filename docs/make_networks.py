"""Makes docs/networks.md and its pictures: `python docs/make_networks.py` (the text alone with --text)."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import conv_ext  # noqa: E402
from conv_ext import models, visualize  # noqa: E402
from conv_ext.demo import transfer  # noqa: E402
from conv_ext.demo.data import load_digits  # noqa: E402

PICTURES = HERE / "networks"
# Those that have a table of their own, and what there is to say about each.
TABLES = {
    "lenet5": """\
`models.lenet5()` has the paper's connection table in C3 and its pooling with a gain and a bias for each map;
`head="rbf"` gives its output layer, too, and then there are the 60,000 trainable parameters that the paper counts.
`lenet5(connections="full", pooling="average")` is the form that is usual today, with 61,706, often with
`activation="relu", pooling="max"`. With `dense="conv"` the full connections are convolutions: the network takes images
of any size from 32 × 32 on, and gives the scores of every window of 32 × 32, four positions apart.""",
    "mnist_convnet": "The demo's network for MNIST: `python -m conv_ext demo --data mnist --root DIR`.",
    "cifar10_convnet": "The demo's network for CIFAR-10: `python -m conv_ext demo --data cifar10 --root DIR`.",
    "alexnet": """\
CaffeNet: pooling before normalisation, 227 × 227. `alexnet(groups=2)` has the two groups of the paper's two GPUs.
torchvision's AlexNet is another network; `conv_ext.convert` makes that one ours.""",
    "zfnet": "With the wider layers three to five of the paper's larger model.",
    "vgg16": """\
`models.vgg("A" | "A-LRN" | "B" | "C" | "D" | "E")` has all configurations of the paper; `load_torchvision` takes the
weights of torchvision's vgg11, vgg13, vgg16 and vgg19 for A, B, D and E. With `dense="conv"` it takes images of any
size from 224 × 224 on, and gives a map of scores, whose mean is the paper's result for a large image.""",
    "nin": """\
The last convolution has a map for each class, and a mean over each map replaces full connections.
`nin(1000, images="imagenet")` is the larger network that the authors published later.""",
    "googlenet": """\
`googlenet(inception="naive")` has modules without 1 × 1 convolutions before the large ones. In training mode the
result has the scores of the two auxiliary classifiers as well. torchvision's GoogLeNet is another network (batch
normalisation, 3 × 3 in place of 5 × 5); `conv_ext.convert` makes that one ours.

The auxiliary classifiers begin with an average pooling of 5 × 5 with stride 3 and without padding, which makes 4 × 4 of
14 × 14, as the paper has it; Avrithis' lecture (2018) has a padding there. It prints 271,418,048 operations for the
naive form of the last module (384, 384 and 128 maps behind 832, on 7 × 7): its 1 × 1 branch stands there with 384, the
number of its maps, in place of its 15,673,728 operations. The sum is 287,091,392.""",
    "resnet50": """\
`models.resnet(18 | 34 | 50 | 101 | 152)`, with the stride of a stage in its first 3 × 3 layer (the paper has it in the
1 × 1 layer before); `load_torchvision` takes torchvision's weights for all five.

`models.resnext(50 | 101 | 152, groups=32, group_width=4)` is ResNeXt (Xie, Girshick, Dollár, Tu and He, 2017): the
3 × 3 layers of the bottlenecks in groups. Its weights are torchvision's resnext50_32x4d, resnext101_32x8d
(`groups=32, group_width=8`) and resnext101_64x4d (`groups=64`).""",
    "mobilenet_v2": """\
`mobilenet_v2(width_mult=1.4)` is the paper's wider one; `load_torchvision` takes torchvision's weights. Most of its
operations are 1 × 1 layers, and the memory that is gone through is that of its depthwise layers and normalisations.""",
}
OPENING = """\
# Networks

Networks of the literature, built from conv_ext's layers: `conv_ext.models`. Each file there is one family and can be
read alone. This page is made by `python docs/make_networks.py`.

```python
from conv_ext import models, summary, fuse, visualize

net = models.vgg16(num_classes=10, width=0.25)      # a quarter of the maps; also in_channels, device, dtype
print(summary(net, (3, 224, 224)))                  # the tables below; also python -m conv_ext summary vgg16
fast = fuse(net.eval())                             # for inference: normalisation and ReLU fused, weights packed
visualize.filters(net).savefig("filters.png")       # and what units look for: visualize.md
```

"""
BELOW = """\
Weight layers are convolutions and full connections on the longest way through the network. The receptive field is that
of the last convolution. The top-5 error is the published one of what the authors entered in the ImageNet challenge, the
mean of several such networks on its test set (O. Russakovsky et al., "ImageNet large scale visual recognition
challenge", IJCV 115 (3), 2015; ResNet's paper); nothing here was trained on ImageNet. `models.topk(scores, labels, 5)`
counts it: the error is one minus that.
"""
TEXT = """\
## How the figures are counted

A convolution or a full connection with an R × S kernel over C maps counts R S C + 1 operations (a multiplication with
an addition; the bias is the one) for each element of its output; pooling and normalisation count one for each element
of their input. Receptive fields follow from the layers' geometry and may be larger than the image; fields and strides
are in positions of the input, and an offset is where the field of the first output begins (below 0 in the padding);
`row.window(p, q)` gives the exact one of an output. KiB are those of the layers' outputs in float32, for one image. The
figures of seven of the networks are held to the printed ones in `tests/python/test_summary.py`.

## Layers beside torch's

- `conv_ext.MappedConv2d(table, kernel_size)` has kernels for the connections of a `ConnectionTable` alone: `full`,
  `one_to_one`, `random(…, fan_in)`, or any list of input maps for each output map. It computes them in groups of output
  maps that see the same, with work in proportion to the connections, or as one dense convolution with zeros for the
  others, where that is estimated to take less time. `dense=True` or `False` decides; `python -m bench mapped` measures.
- `padding="full"` and `padding="same_strided"` in `Conv2d`, `Conv1d` and the functions.
- `models.L2Pool`, `models.Maxout`: pooling over feature maps; `models.TrainablePool2d`: LeNet-5's.

"""
SEEN = """\
## What a network sees

LeNet-5 in the paper's form, after 20 epochs on scikit-learn's digits. The filters of its first layer:

![first-layer filters](networks/filters.png)

What its first layer makes of one test image, before the squashing function:

![feature maps](networks/feature_maps.png)

And how the probability of the right class falls when a square of the image is covered (Zeiler and Fergus, 2014):

![occlusion](networks/occlusion.png)

[visualize.md](visualize.md) goes on: what single units look for.

## Transfer learning

`python -m conv_ext demo transfer` lets a LeNet-5 that knows the digits 0 to 4 go on to 5 to 9: with all layers frozen
but the last, with the convolutions before C5 frozen, and from scratch, all with the same number of steps. For frozen
layers neither gradient is computed, which the demo shows by counting kernels. On digits as small as these the
features of five classes are not better than fresh ones; what is gained is time.

![accuracy against the number of training images](networks/transfer.png)

"""


def _millions(value: int) -> str:
    return f"{value / 1e6:,.2f}"


def text() -> str:
    """The page."""
    overview, tables = [], []
    for name, entry in models.NETWORKS.items():
        classes = {"num_classes": 1000} if name == "nin_imagenet" else {}
        found = conv_ext.summary(entry.make(in_channels=entry.image[0], device="meta", **classes), entry.image)
        field = max(row.receptive_field[0] for row in found.rows if row.op.startswith(("conv", "inc")))
        error = "" if entry.top5 is None else str(entry.top5)
        cells = [name, entry.paper, " × ".join(map(str, entry.image)), str(found.weight_layers),
                 _millions(found.parameters), _millions(found.operations), str(field), f"{found.bytes / 2**20:,.1f}",
                 error]  # fmt: skip
        overview.append("| " + " | ".join(cells) + " |")
        if name in TABLES:
            tables.append(f"### {name}\n\n{entry.paper}.\n\n{TABLES[name]}\n\n{found.to_markdown()}\n")
    head = [
        "| network | paper | image | weight layers | million parameters | million operations | receptive field "
        "| MiB of activations | top-5 error, % |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    table = "\n".join(head + overview)
    listed = f"{table}\n\n{BELOW}\n"
    return OPENING + listed + TEXT + SEEN + "## Tables\n\n" + "\n".join(tables)


def pictures() -> None:
    """The pictures, into docs/networks."""
    PICTURES.mkdir(exist_ok=True)
    torch.manual_seed(0)
    images, cpu = load_digits(), torch.device("cpu")
    net = models.lenet5()
    accuracy, _ = transfer.learn(net, images, 20 * 45, 0, cpu)
    print(f"LeNet-5: test accuracy {100 * accuracy:.2f} %")
    net.eval()
    x, labels = images.test_batch(slice(0, 400))
    place = int((labels == 4).nonzero()[0])
    drawn = {
        "filters": visualize.filters(net),
        "feature_maps": visualize.feature_maps(net, "c1", x[place]),
        "occlusion": visualize.occlusion(net, x[place], target=4, patch=7, stride=1, fill=float(x.min())),
    }
    for name, figure in drawn.items():
        (PICTURES / f"{name}.png").write_bytes(visualize.png(figure))
    with contextlib.redirect_stdout(io.StringIO()):
        found = transfer.run(argparse.Namespace(seed=0, epochs=20), images, cpu)
    (PICTURES / "transfer.png").write_bytes(transfer.draw(found))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", action="store_true", help="leave the pictures as they are")
    if not parser.parse_args().text:
        pictures()
    (HERE / "networks.md").write_text(text(), encoding="utf-8")
