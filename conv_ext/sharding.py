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

_logger = logging.getLogger("conv_ext")


def _register() -> None:
    try:
        _register_strategies()
    except (ImportError, AttributeError, TypeError) as error:
        _logger.warning("DTensors cannot be convolved: this torch registers sharding strategies otherwise: %s", error)


def _register_strategies() -> None:
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
    from torch.distributed.tensor._op_schema import RuntimeSchemaInfo
    from torch.distributed.tensor._ops.utils import expand_to_full_mesh_op_strategy

    batch, whole = Shard(0), Replicate()
    sharded: dict[Any, list[Any]] = {  # the result, then the tensors among the arguments
        ops.forward: [batch, batch, whole, whole],
        ops.forward_packed: [batch, batch, whole, whole, whole],
        ops.input_grad: [batch, batch, whole],
        ops.weight_grad: [Partial("sum"), batch, batch],
    }

    def strategy(placements: list[Any], schema: Any) -> Any:
        tensors = 1 + len(schema.args_strategy)  # without a bias there is one less
        choices = [placements[:tensors], [whole] * tensors]
        mesh = schema.get_mesh_from_args()
        return expand_to_full_mesh_op_strategy(mesh, schema, choices, allow_uneven_sharding=True)

    for operator, placements in sharded.items():
        names = [argument.name for argument in operator._schema.arguments]
        first = next(i for i, name in enumerate(names) if name in ("stride", "input_size", "kernel_size"))
        info = RuntimeSchemaInfo(static_argnum=first, needs_pytree=True)
        propagator = DTensor._op_dispatcher.sharding_propagator
        propagator.register_op_strategy(operator, partial(strategy, placements), info)


when_loaded("torch.distributed.tensor", _register)
