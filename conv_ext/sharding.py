"""How our operators run on DTensors (torch.distributed.tensor), as torch's own convolution does: the batch is sharded.

An image needs nothing of the others, so that forward and input_grad of some of them are some of their results, and the
weight gradient of a batch is the sum over its parts. The weight and the bias are replicated; operands that lie
otherwise are redistributed first. Batches need not be divisible by the number of processes.

torch's public ``register_sharding`` would take calls that differ in stride or padding alone for the same call: it
remembers a result's size by the operands and by what follows the first single int. So the strategies are registered as
torch registers its own, by names that another version of it may not have: then there are none, and the log says so.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from . import ops
from .when_loaded import when_loaded

_OF_IMAGES = ("input", "grad_output", "residual")  # the arguments that have a batch
_logger = logging.getLogger("conv_ext")


def _register() -> None:
    try:
        _register_strategies()
    except (ImportError, AttributeError, TypeError) as error:
        _logger.warning("DTensors cannot be convolved: this torch registers sharding strategies otherwise: %s", error)


def _register_strategies() -> None:
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
    from torch.distributed.tensor._op_schema import OpStrategy, RuntimeSchemaInfo
    from torch.distributed.tensor._ops.utils import expand_to_full_mesh_op_strategy

    whole = Replicate()

    def strategy(names: list[str], result: Any, schema: Any) -> Any:
        given = [name for name, value in zip(names, schema.args_schema) if isinstance(value, OpStrategy)]
        by_batch = [Shard(0) if name in _OF_IMAGES else whole for name in given]
        choices = [[result, *by_batch], [whole] * (1 + len(given))]
        mesh = schema.get_mesh_from_args()
        return expand_to_full_mesh_op_strategy(mesh, schema, choices, allow_uneven_sharding=True)

    for operator in (ops.forward, ops.forward_packed, ops.input_grad, ops.weight_grad):
        result = Partial("sum") if operator is ops.weight_grad else Shard(0)
        names = [argument.name for argument in operator._schema.arguments]
        first = next(i for i, name in enumerate(names) if name in ("stride", "input_size", "kernel_size"))
        info = RuntimeSchemaInfo(static_argnum=first, needs_pytree=True)
        propagator = DTensor._op_dispatcher.sharding_propagator
        propagator.register_op_strategy(operator, partial(strategy, names, result), info)


when_loaded("torch.distributed.tensor", _register)
