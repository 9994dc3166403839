"""Picks the benchmark: `python -m bench [run | call | scaling | report] [options]`; run is the default."""

import importlib
import sys

from bench.environment import run_warm

COMMANDS = {
    "run": ("bench.run", "layers of networks, pass by pass, against torch (the default)"),
    "call": ("bench.call_cost", "the cost of one call on tiny tensors, against torch"),
    "scaling": ("bench.scaling", "one thread against several on large layers, and whether the bits are the same"),
    "report": ("bench.report", "the tables of results already measured, in markdown"),
}


def main() -> int:
    arguments = sys.argv[1:]
    if arguments[:1] in (["-h"], ["--help"]):
        width = max(map(len, COMMANDS))
        print("usage: python -m bench [command] [options]; `python -m bench <command> --help` for its options\n")
        for name, (_, text) in COMMANDS.items():
            print(f"  {name:{width}}  {text}")
        return 0
    command = arguments.pop(0) if arguments[:1] and arguments[0] in COMMANDS else "run"
    if "--warm" in arguments:
        run_warm()
    try:
        return importlib.import_module(COMMANDS[command][0]).main(arguments)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
