"""Two processes over gloo give the gradients of one: DistributedDataParallel, FSDP2, sharded DTensors."""

import socket
import textwrap
import threading

import pytest
import torch
from torch import nn

import conv_ext
from children import run_python

# The worker leaves by os._exit: an ordinary exit takes the interpreter down while gloo's threads may still
# hold tensors, which ends some runs with "terminate called without an active exception" whatever the layers
# are (github.com/pytorch/pytorch/pull/179291).
WORKER = textwrap.dedent("""
    import os
    import sys
    import torch
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, Replicate, Shard
    from torch.distributed.tensor import distribute_module, distribute_tensor, init_device_mesh
    from torch.nn.parallel import DistributedDataParallel
    import conv_ext
    from test_distributed import BATCHES, loss_of, network

    rank, port, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    found = {}

    def whole(tensor):
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    # Each process has half of the images.
    model, x = network(torch.channels_last)
    parallel = DistributedDataParallel(model)
    for _ in range(2):
        parallel.zero_grad()
        loss_of(parallel(x[2 * rank : 2 * rank + 2])).backward()
    found["ddp"] = [p.grad for p in model.parameters()]

    model, x = network()
    for layer in model:
        if list(layer.parameters()):
            fully_shard(layer)
    fully_shard(model)
    for _ in range(2):
        model.zero_grad()
        loss_of(model(x[2 * rank : 2 * rank + 2])).backward()
    assert all(isinstance(p.grad, DTensor) and p.grad.placements == (Shard(0),) for p in model.parameters())
    found["fsdp2"] = [whole(p.grad) for p in model.parameters()]

    # The same program on sharded tensors. An odd batch has a larger part, and one image leaves a process without any.
    mesh = init_device_mesh("cpu", (2,))
    for n in BATCHES:
        model, x = network()
        distribute_module(model, mesh)
        images = distribute_tensor(x[:n], mesh, [Shard(0)]).requires_grad_()
        y = model(images)
        loss_of(y).backward()
        assert y.placements == (Shard(0),) and images.grad.shape == images.shape
        if n > 1:
            assert images.grad.placements == (Shard(0),)
            assert all(p.grad.placements[0].is_partial() for p in model.parameters())
        found[f"dtensor {n}"] = [whole(t) for t in (y, images.grad, *(p.grad for p in model.parameters()))]

    # Whatever lies otherwise is brought where it has to be.
    x, w = torch.randn(2, 4, 6, 7), torch.randn(6, 4, 3, 3)
    dist.broadcast(x, 0), dist.broadcast(w, 0)
    odd = conv_ext.conv2d(distribute_tensor(x, mesh, [Shard(3)]), distribute_tensor(w, mesh, [Shard(0)]), padding=1)
    assert torch.equal(whole(odd), conv_ext.conv2d(x, w, padding=1))

    residual = torch.randn(2, 6, 6, 7)
    dist.broadcast(residual, 0)
    x_, w_, r_ = (distribute_tensor(t, mesh, [p]) for t, p in ((x, Shard(0)), (w, Replicate()), (residual, Shard(0))))
    y = conv_ext.conv2d(x_, w_, padding=1, activation="silu", residual=r_)
    assert y.placements == (Shard(0),)
    assert torch.equal(whole(y), conv_ext.conv2d(x, w, padding=1, activation="silu", residual=residual))

    layer = conv_ext.PackedConv2d.of(conv_ext.Conv2d(64, 64, 3), torch.randn(1, 64, 5, 5))
    x = torch.randn(2, 64, 5, 5)
    dist.broadcast(x, 0)
    weight, bias, packed = (distribute_tensor(layer._held[name], mesh, [Replicate()])
                            for name in ("weight", "bias", "packed"))
    options = (1, 1), (0, 0, 0, 0), (1, 1), 1
    with torch.no_grad():
        y = torch.ops.conv_ext.forward_packed(distribute_tensor(x, mesh, [Shard(0)]), weight, packed, bias, *options)
        local = torch.ops.conv_ext.forward_packed(x[rank : rank + 1], *map(DTensor.to_local, (weight, packed, bias)),
                                                  *options)
    assert y.placements == (Shard(0),) and torch.equal(y.to_local(), local)

    if rank == 0:
        torch.save(found, out)
    dist.destroy_process_group()
    os._exit(0)
""")
BATCHES = (4, 3, 1)


def network(memory_format=torch.contiguous_format):  # FSDP2 takes no other weights
    """One with weights of every kind; the strides of some say nothing of their layout."""
    torch.manual_seed(3)
    model = nn.Sequential(
        conv_ext.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0), activation="relu"),
        conv_ext.Conv2d(4, 4, 3, groups=4, padding=1, bias=False), nn.Tanh(),
        conv_ext.ConvTranspose2d(4, 6, (2, 3), stride=2, groups=2), nn.Tanh(), conv_ext.Conv2d(6, 2, 1),
    )  # fmt: skip
    return model.to(memory_format=memory_format), torch.randn(4, 3, 8, 7)


def loss_of(y):
    return y.sin().mean()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the processes have computed, by the way in which they shared the work."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    out = str(tmp_path_factory.mktemp("workers") / "found.pt")
    results = []

    def work(rank):
        results.append(run_python("-c", WORKER, str(rank), port, out))

    workers = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    said = "\n".join(result.stderr for result in results)
    assert all(result.returncode == 0 for result in results), said
    assert "do not match bucket view strides" not in said  # of DistributedDataParallel, which copies then
    return torch.load(out)


@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
def test_gradients_are_those_of_one_process(found, way):
    model, x = network(torch.channels_last if way == "ddp" else torch.contiguous_format)
    loss_of(model(x)).backward()
    torch.testing.assert_close(found[way], [p.grad for p in model.parameters()])


@pytest.mark.parametrize("n", BATCHES)
def test_sharded_tensors_compute_what_whole_ones_do(found, n):
    model, x = network()
    images = x[:n].clone().requires_grad_()
    y = model(images)
    loss_of(y).backward()
    wanted = [y.detach(), images.grad, *(p.grad for p in model.parameters())]
    torch.testing.assert_close([t.detach() for t in found[f"dtensor {n}"]], wanted)
    assert torch.equal(found[f"dtensor {n}"][0], y)  # an image's bits are those that it has in any batch


def test_strategies_are_registered_in_either_order_of_imports():
    script = "{}; {}\nfrom torch.distributed.tensor import DTensor; import torch\n"
    script += "known = DTensor._op_dispatcher.sharding_propagator.op_strategy_funcs\n"
    script += "print(all(getattr(torch.ops.conv_ext, n).default in known for n in "
    script += "('forward', 'input_grad', 'weight_grad', 'forward_packed')))"
    imports = "import conv_ext", "import torch.distributed.tensor"
    for order in (imports, imports[::-1]):
        child = run_python("-c", script.format(*order))
        assert child.stdout.strip() == "True", child.stderr
