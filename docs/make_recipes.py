"""Measures the table of docs/recipes.md: `python docs/make_recipes.py`, a few minutes for scikit-learn's digits.

`--mnist DIR` and `--cifar10 DIR` add the rows of those, where their files are; hours on two cores. Rows that are not
measured this time stay as they are.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from conv_ext.demo.compare import EPOCHS, NETWORKS  # noqa: E402
from conv_ext.demo.data import DataError, Images, load_cifar10, load_digits, load_mnist  # noqa: E402
from conv_ext.demo.training import Recipe, Training  # noqa: E402

PAGE = HERE / "recipes.md"
BEGIN, END = "<!-- recipes: begin -->\n", "<!-- recipes: end -->\n"
HEAD = "| images | network | recipe | epochs | test error, % | of each seed |\n|---|---|---|---:|---:|---|\n"
# Of each set of images: what learns it.
LEARNERS = {"digits": ("lenet5", "cifar10_convnet"), "mnist": ("mnist_convnet",), "cifar10": ("cifar10_convnet",)}
SEEDS = range(3)


def error_of(images: Images, network: str, recipe: Recipe, epochs: int, seed: int, bar) -> float:
    """The share of test images that are read wrongly after training, in percent."""
    torch.manual_seed(seed)
    net = NETWORKS[network].make(len(images.classes), images.train_images.shape[1])
    training = Training(net, images, epochs=epochs, recipe=recipe, seed=seed, device=torch.device("cpu"))
    for epoch in range(epochs):
        training.run_epoch(tested=epoch == epochs - 1)
        bar.update()
    return 100 * (1 - training.history.accuracies[-1])


def rows_of(data: str, images: Images) -> dict[str, str]:
    """The rows of one set of images, by how they begin."""
    from tqdm import tqdm

    found = {}
    jobs = [(network, name) for network in LEARNERS[data] for name in ("today's", "plain")]
    with tqdm(total=len(jobs) * len(SEEDS) * EPOCHS[data], desc=data, unit="epoch", dynamic_ncols=True) as bar:
        for network, name in jobs:
            recipe = NETWORKS[network].recipe
            recipe = recipe.plain() if name == "plain" else recipe
            errors = [error_of(images, network, recipe, EPOCHS[data], seed, bar) for seed in SEEDS]
            begin = f"| {data} | {network} | {name} | "
            each = ", ".join(f"{error:.2f}" for error in errors)
            found[begin] = f"{begin}{EPOCHS[data]} | {sum(errors) / len(errors):.2f} | {each} |\n"
    return found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("mnist", "cifar10"):
        parser.add_argument(f"--{name}", type=Path, metavar="DIR", help=f"the folder with the files of {name}")
    options = parser.parse_args(arguments)
    try:
        sets = {"digits": load_digits()}
        if options.mnist:
            sets["mnist"] = load_mnist(options.mnist, NETWORKS["mnist_convnet"].side)
        if options.cifar10:
            sets["cifar10"] = load_cifar10(options.cifar10)
    except DataError as error:
        parser.error(str(error))
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    table, after = rest.split(END)
    rows = {}
    for row in table.splitlines(keepends=True)[2:]:
        rows["|".join(row.split("|")[:4]) + "| "] = row
    for data, images in sets.items():
        rows |= rows_of(data, images)
    PAGE.write_text(before + BEGIN + HEAD + "".join(rows.values()) + END + after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
