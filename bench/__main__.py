"""Picks the benchmark: `python -m bench [command] [options]`, the commands those of COMMANDS; run is the default."""

import importlib
import signal
import sys

from bench.environment import restart_if_asked

COMMANDS = {
    "run": ("bench.run", "layers of networks, pass by pass, against torch (the default)"),
    "network": ("bench.network", "whole networks, converted and not: training steps, one image, memory"),
    "fused": ("bench.fused", "the forward of networks after conv_ext.fuse, against the same without"),
    "inference": ("bench.inference", "the forward of networks beside compiled torch, onnxruntime and openvino"),
    "mapped": ("bench.mapped", "MappedConv2d against a masked dense convolution"),
    "parts": ("bench.parts", "where the time of a fused network goes: convolutions, pooling, the classifier"),
    "pooling": ("bench.pooling", "torch's pooling between convolutions, in both layouts"),
    "call": ("bench.call_cost", "the cost of one call on tiny tensors, against torch"),
    "scaling": ("bench.scaling", "one thread against several on large layers, and whether the bits are the same"),
    "sweep": ("bench.sweep", "every algorithm on every layer: whether the one chosen is the fastest"),
    "fit": ("bench.fit", "the cycles by which the CPU's plan chooses, fitted to sweeps' times"),
    "keep": ("bench.keep", "results as small tables, which the repository keeps"),
    "report": ("bench.report", "tables, figures and the README's table from results already measured"),
}


def interrupt_on_term() -> None:
    """What ends the process from outside ends a run as Ctrl-C does: with what there is so far."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a shell may have had interrupts ignored


def main() -> int:
    arguments = sys.argv[1:]
    interrupt_on_term()
    if arguments[:1] in (["-h"], ["--help"]):
        width = max(map(len, COMMANDS))
        print("usage: python -m bench [command] [options]; `python -m bench <command> --help` for its options\n")
        for name, (_, text) in COMMANDS.items():
            print(f"  {name:{width}}  {text}")
        return 0
    if arguments and arguments[0] not in COMMANDS and not arguments[0].startswith("-"):
        raise SystemExit(f"a command must be one of {', '.join(COMMANDS)}, got {arguments[0]}")
    command = arguments.pop(0) if arguments[:1] and arguments[0] in COMMANDS else "run"
    try:
        if command not in ("report", "keep", "fit") and not {"-h", "--help"} & set(arguments):
            status = restart_if_asked(arguments)
            if status is not None:
                return status
        return importlib.import_module(COMMANDS[command][0]).main(arguments)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
