"""A pytest plugin for a process with host_device.cpp: what torch.cuda says of the device in host memory."""

from types import SimpleNamespace

import torch


def answer(value):
    return lambda *arguments, **options: value


SAYS = {
    "_lazy_init": None, "is_available": True, "is_initialized": True, "device_count": 2, "current_device": 0,
    "get_device_capability": (9, 0), "get_device_name": "host memory", "synchronize": None, "empty_cache": None,
    "manual_seed_all": None, "set_rng_state": None,
    "get_device_properties": SimpleNamespace(total_memory=1 << 30, major=9, minor=0, multi_processor_count=1),
}  # fmt: skip
for name, value in SAYS.items():
    setattr(torch.cuda, name, answer(value))
torch.cuda.get_rng_state = lambda *device: torch.get_rng_state()
torch.cuda.default_generators = (torch.default_generator,) * 2
for name, value in {"getDevice": 0, "setDevice": None, "exchangeDevice": 0, "maybeExchangeDevice": 0}.items():
    setattr(torch._C, f"_cuda_{name}", answer(value))
torch._C._cuda_getCurrentRawStream = answer(0x1000)
