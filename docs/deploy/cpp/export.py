"""Makes what deploy.cpp reads, in a folder: python export.py FOLDER [NETWORK]. Prints the path of the operators."""

import sys
from pathlib import Path

import torch

import conv_ext
from conv_ext import models


def main(folder: Path, name: str = "lenet5") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    entry = models.NETWORKS[name]
    network = entry.make().eval()
    images = torch.randn(2, *entry.image)
    with torch.no_grad():
        scores = network(images)
        fast = conv_ext.fuse(network)
        program = torch.export.export(fast, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
        torch._inductor.aoti_compile_and_package(program, package_path=str(folder / "package.pt2"))
        torch.jit.trace(fast, images).save(str(folder / "trace.pt"))
    weight = torch.randn(8, images.shape[1], 3, 3)
    torch.save({"images": images, "scores": scores, "weight": weight}, folder / "example.pt")
    print(Path(conv_ext.__file__).parent / "libconv_ext_operators.so")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
