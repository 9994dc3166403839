"""The machine code of a kernel as the disassembler prints it: instructions, the loops they form, paths through a loop.

`cuobjdump -sass` of an object becomes Kernels. A loop is found by its back edge (a natural loop); what a step of it
costs is counted along paths from its head round to its head, where an inner loop (a thread that waits) counts once.
"""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P[0-9T]+)\s+)?([A-Z0-9_]+)((?:\.[A-Za-z0-9_]+)*)\s*(.*?)\s*;")
JUMPS = ("BRA", "JMP", "BRX", "RET", "EXIT", "KILL", "BPT")


@dataclass(frozen=True)
class Instruction:
    address: int
    predicate: str
    name: str  # HGMMA
    modifiers: str  # .64x128x16.F32.BF16
    operands: str

    @property
    def target(self) -> int | None:
        found = re.search(r"`\(|(?:^|[ ,])(0x[0-9a-f]+)$", self.operands)
        return int(found[1], 16) if self.name in ("BRA", "JMP", "WARPSYNC") and found and found[1] else None

    def __str__(self) -> str:
        return f"{self.address:05x} {'@' + self.predicate if self.predicate else '':5} {self.name}{self.modifiers} " \
               f"{self.operands}"


@dataclass(frozen=True)
class Loop:
    kernel: "Kernel" = field(repr=False)
    head: int
    body: frozenset[int]  # blocks, by their first addresses

    @property
    def instructions(self) -> list[Instruction]:
        return [i for block in sorted(self.body) for i in self.kernel.blocks[block]]

    def has(self, name: str) -> bool:
        return any(i.name == name for i in self.instructions)

    def longest(self, within) -> int:
        """Instructions of the longest way round through blocks of which within(instructions) is true."""
        number = {block: i for i, block in enumerate(self.kernel.reachable)}
        length = {}  # from a block to the head
        for block in sorted(self.body, key=number.get, reverse=True):  # what follows is known
            rest = [0 if b == self.head else length[b] for b in self.kernel.following[block]
                    if b == self.head or number[b] > number[block] and b in length]
            if rest and within(self.kernel.blocks[block]):
                length[block] = len(self.kernel.blocks[block]) + max(rest)
        return length[self.head]

    def paths(self, most: int = 4096):
        """Every way from the head round to it again that takes no block twice."""
        stack = [(self.head,)]
        while stack:
            path = stack.pop()
            for following in self.kernel.following[path[-1]]:
                if following == self.head:
                    yield [i for block in path for i in self.kernel.blocks[block]]
                    most -= 1
                    assert most > 0, f"a loop of {self.kernel.name} has too many paths to count"
                elif following in self.body and following not in path:
                    stack.append((*path, following))


@dataclass
class Kernel:
    name: str
    instructions: list[Instruction]

    def has(self, name: str) -> bool:
        return any(i.name == name for i in self.instructions)

    @cached_property
    def blocks(self) -> dict[int, list[Instruction]]:
        heads = {self.instructions[0].address}
        for i, following in zip(self.instructions, [*self.instructions[1:], None]):
            if i.target is not None:
                heads.add(i.target)
            if following is not None and (i.name in JUMPS or i.target is not None):
                heads.add(following.address)
        blocks: dict[int, list[Instruction]] = {}
        for i in self.instructions:
            if i.address in heads:
                head = i.address
                blocks[head] = []
            blocks[head].append(i)
        return blocks

    @cached_property
    def following(self) -> dict[int, list[int]]:
        order = list(self.blocks)
        edges = {}
        for block, after in zip(order, [*order[1:], None]):
            last = self.blocks[block][-1]
            # A predicate, or an operand that is one (BRA P0, 0x...; BRA.DIV UR4, 0x...), makes it conditional.
            conditional = last.predicate not in ("", "PT") or "," in last.operands or last.name == "WARPSYNC"
            to = [last.target] if last.target is not None else []
            if after is not None and (last.name not in JUMPS or conditional):
                to.append(after)
            edges[block] = [t for t in to if t in self.blocks]
        return edges

    @cached_property
    def reachable(self) -> list[int]:
        """Blocks in reverse postorder."""
        seen, order = set(), []
        stack = [(next(iter(self.blocks)), iter(self.following[next(iter(self.blocks))]))]
        seen.add(stack[0][0])
        while stack:
            block, rest = stack[-1]
            step = next((b for b in rest if b not in seen), None)
            if step is None:
                order.append(block)
                stack.pop()
            else:
                seen.add(step)
                stack.append((step, iter(self.following[step])))
        return order[::-1]

    @cached_property
    def loops(self) -> list[Loop]:
        """The smallest first."""
        number = {block: i for i, block in enumerate(self.reachable)}
        before: dict[int, list[int]] = {block: [] for block in self.reachable}
        for block in self.reachable:
            for following in self.following[block]:
                before[following].append(block)
        dominator = {self.reachable[0]: self.reachable[0]}

        def common(a: int, b: int) -> int:
            while a != b:
                if number[a] > number[b]:
                    a = dominator[a]
                else:
                    b = dominator[b]
            return a

        changed = True
        while changed:
            changed = False
            for block in self.reachable[1:]:
                known = [b for b in before[block] if b in dominator]
                new = known[0]
                for other in known[1:]:
                    new = common(new, other)
                if dominator.get(block) != new:
                    dominator[block] = new
                    changed = True

        def dominates(a: int, b: int) -> bool:
            while b != a and b != self.reachable[0]:
                b = dominator[b]
            return a == b

        bodies: dict[int, set[int]] = {}
        for block in self.reachable:
            for head in self.following[block]:
                if not dominates(head, block):
                    continue
                body, stack = bodies.setdefault(head, {head}), [block]
                while stack:
                    one = stack.pop()
                    if one not in body:
                        body.add(one)
                        stack += before[one]
        loops = [Loop(self, head, frozenset(body)) for head, body in bodies.items()]
        return sorted(loops, key=lambda loop: len(loop.instructions))

    def innermost(self, name: str) -> list[Loop]:
        """Loops that have such an instruction, and none within them that has one."""
        having = [loop for loop in self.loops if loop.has(name)]
        return [loop for loop in having if not any(other.body < loop.body for other in having)]


def disassembler() -> str | None:
    """cuobjdump, of a CUDA toolkit on the PATH, of NVIDIA's wheel (nvidia-cuda-cuobjdump) or of Triton's."""
    found = shutil.which("cuobjdump")
    for package, folder in (("nvidia", "*/bin"), ("triton", "backends/nvidia/bin")):
        spec = find_spec(package) if found is None else None
        for place in spec.submodule_search_locations if spec else []:
            tools = sorted(Path(place).glob(f"{folder}/cuobjdump"))
            found = str(tools[0]) if tools else found
    return found


def parse(text: str) -> dict[str, Kernel]:
    kernels = {}
    for part in text.split("Function : ")[1:]:
        name = part.split(None, 1)[0]
        found = [LINE.match(line) for line in part.splitlines()]
        kernels[name] = Kernel(name, [Instruction(int(m[1], 16), m[2] or "", m[3], m[4], m[5]) for m in found if m])
    return kernels


def kernels_of(binary: Path, names: list[str] | None = None) -> dict[str, Kernel]:
    """All of a cubin or an object, or those of these mangled names, for sm_90a."""
    tool = disassembler()
    beside = os.pathsep.join([os.environ.get("PATH", ""), str(Path(tool).parent)])  # it calls nvdisasm
    command = [tool, "-sass", "-arch", "sm_90a", *(["-fun", ",".join(names)] if names else []), str(binary)]
    done = subprocess.run(command, env={**os.environ, "PATH": beside}, capture_output=True, text=True, check=True)
    return parse(done.stdout)
