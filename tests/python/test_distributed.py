"""DistributedDataParallel: two processes over gloo give the gradients of one."""

import socket
import textwrap
import threading

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
    from torch.nn.parallel import DistributedDataParallel
    import conv_ext
    from test_distributed import network

    rank, port, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    model, x = network()
    parallel = DistributedDataParallel(model)
    for _ in range(2):
        parallel.zero_grad()
        parallel(x[2 * rank : 2 * rank + 2]).sin().mean().backward()
    if rank == 0:
        torch.save([p.grad for p in model.parameters()], out)
    dist.destroy_process_group()
    os._exit(0)
""")


def network():
    torch.manual_seed(3)
    model = nn.Sequential(
        conv_ext.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0)), nn.Tanh(),
        conv_ext.ConvTranspose2d(4, 6, (2, 3), stride=2, groups=2), nn.Tanh(), conv_ext.Conv2d(6, 2, 1),
    )  # fmt: skip
    return model, torch.randn(4, 3, 8, 7)


def test_distributed_data_parallel_gives_the_gradients_of_one_process(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    out = str(tmp_path / "gradients.pt")
    results = []

    def work(rank):
        results.append(run_python("-c", WORKER, str(rank), port, out))

    workers = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(result.returncode == 0 for result in results), "\n".join(result.stderr for result in results)
    model, x = network()
    model(x).sin().mean().backward()
    torch.testing.assert_close(torch.load(out), [p.grad for p in model.parameters()])
