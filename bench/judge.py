"""Whether a result is right: each element against float64, within the rounding that its dtype and precision allow."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

# The unit roundoffs of the accumulation and of the result's own rounding.
ROUNDOFF = {
    "float32": (2.0**-24, 0.0),
    "float64": (2.0**-53, 0.0),
    "bfloat16": (2.0**-24, 2.0**-8),
    "float16": (2.0**-24, 2.0**-11),
    "complex64": (2.0**-24, 0.0),
}
OPERAND_ROUNDOFF = {"tf32": 2.0**-11, "bf16": 2.0**-8}
TILE = 6  # positions each way over which an algorithm that transforms tiles may spread an error


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


@dataclass
class Verdict:
    """Errors of one result, in units of the rounding that cannot be avoided; wrong where one is beyond its bound."""

    largest: float
    rms: float
    right: bool


class Judge:
    """Holds the float64 result of a pass and judges others by it.

    With A the convolution of the absolute values, L the length of the reduction, u the roundoff of the accumulation and
    u_out that of the result's dtype, an element may be wrong by

    - "ieee": u_out |reference| + 2 sqrt(L) u A;
    - "tf32", "bf16", for float32: (2 u_p + gamma_L) A', with u_p = 2^-11 or 2^-8, gamma_L = L u / (1 - L u) and A' the
      largest A of a tile: up to TILE positions away, or, for a weight gradient, all taps of the kernel.

    Each of the two parts of a complex number sums 2 L products, and both count: 4 L stands for L there.

    Errors are reported relative to u_out |reference| + u A, whatever was allowed.
    """

    def __init__(self, pass_name: str, dtype: str, length: int, compute: Callable[[Callable], torch.Tensor]):
        """compute(f) is the pass by torch's float64 code on operands changed by f: no code in common with ours."""
        self.pass_name, self.length = pass_name, 4 * length if dtype.startswith("complex") else length
        self.u, self.u_out = ROUNDOFF[dtype]
        self.reference = compute(lambda t: _wide(t).contiguous())
        self.magnitude = compute(lambda t: _wide(t).abs().contiguous())
        self.rounding = self.u_out * self.reference.abs()

    def bound(self, precision: str) -> torch.Tensor:
        if precision == "ieee":
            return self.rounding + 2 * math.sqrt(self.length) * self.u * self.magnitude
        gamma = self.length * self.u / (1 - self.length * self.u)
        return self.rounding + (2 * OPERAND_ROUNDOFF[precision] + gamma) * self.largest_of_tile()

    def largest_of_tile(self) -> torch.Tensor:
        if self.pass_name == "weight_grad":
            return self.magnitude.amax(dim=(2, 3), keepdim=True)
        rows = F.max_pool2d(self.magnitude, (2 * TILE + 1, 1), stride=1, padding=(TILE, 0))
        return F.max_pool2d(rows, (1, 2 * TILE + 1), stride=1, padding=(0, TILE))

    def __call__(self, result: torch.Tensor, precision: str = "ieee") -> Verdict:
        if result.shape != self.reference.shape:
            return Verdict(math.inf, math.inf, False)
        error = (_wide(result) - self.reference).abs()
        right = bool((error <= self.bound(precision)).all())  # false for a NaN
        units = torch.where(error == 0, 0.0, error / (self.rounding + self.u * self.magnitude))
        return Verdict(units.max().item(), units.square().mean().sqrt().item(), right)
