"""Models by the words of the command line: a network of ours, timm's, a factory in a module, an exported program."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from .models import NETWORKS

__all__ = ["FORMS", "Subject", "SubjectError", "load", "settled"]

FORMS = f"""a network of conv_ext.models ({", ".join(NETWORKS)}); timm:NAME (pip install timm); module:factory, what a
function without arguments in a module returns, or a model itself; the path of a program of torch.export (.pt2)"""


class SubjectError(ValueError):
    """What is wrong with a name, in words for the command line."""


@dataclass(frozen=True)
class Subject:
    """A model and what is known of it.

    model: an nn.Module as its maker leaves it, or an ExportedProgram. image: (C, H, W) of the images that it is made
    for, None where nobody says. example: what an exported program is called with.
    """

    name: str
    model: nn.Module | ExportedProgram
    image: tuple[int, ...] | None = None
    example: tuple[tuple[Any, ...], dict[str, Any]] | None = None


def load(name: str, *, device: str = "cpu", **options: Any) -> Subject:
    """The model of a name, as `FORMS` describes names, with random weights where it is made here.

    device: "meta" where only sizes are wanted. options: in_channels and num_classes, for the networks of ours and
    timm's (in_chans there); others take none.

    Raises SubjectError where there is no such model, or it cannot be made.
    """
    kind, _, rest = name.partition(":")
    if name in NETWORKS:
        entry = NETWORKS[name]
        with _told(name):
            return Subject(name, entry.make(device=device, **options), entry.image)
    if kind == "timm" and rest:
        return _of_timm(name, rest, device, options)
    if options:
        raise SubjectError(f"{', '.join(options)} can be chosen of conv_ext.models' networks and timm's alone")
    if name.endswith(".pt2") or os.sep in name:
        return _exported(Path(name))
    if rest:
        return _made(name, kind, rest, device)
    close = difflib.get_close_matches(name, NETWORKS, 3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"the networks are {', '.join(NETWORKS)}"
    raise SubjectError(
        f"there is no network {name!r}: {hint} Other models are timm:NAME, module:factory or a .pt2 file"
    )


class _told:
    """Makes whatever a maker raises a SubjectError with the maker's words."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, _trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, SubjectError):
            text = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise SubjectError(f"{self.name} cannot be made: {type(error).__name__}: {text}") from error


def _of_timm(name: str, rest: str, device: str, options: dict[str, Any]) -> Subject:
    if importlib.util.find_spec("timm") is None:
        raise SubjectError(f"{name}: timm is not installed: pip install timm")
    with _told(name):  # it loads torchvision, which may be for another torch
        timm = importlib.import_module("timm")
    with _told(name), torch.device(device):
        keywords = {{"in_channels": "in_chans"}.get(key, key): value for key, value in options.items()}
        model = timm.create_model(rest, pretrained=False, **keywords)
        size = timm.data.resolve_model_data_config(model)["input_size"]
    return Subject(name, model, tuple(size))


def _exported(path: Path) -> Subject:
    if not path.is_file():
        raise SubjectError(f"there is no file {path}")
    with _told(str(path)):
        program = torch.export.load(path)
    return Subject(path.stem, program, None, program.example_inputs)


def _made(name: str, module_name: str, rest: str, device: str) -> Subject:
    """What a factory of a module makes; the current folder's modules are found, as `python -m` finds them."""
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    with _told(name):
        found: Any = importlib.import_module(module_name)
        for attribute in rest.split("."):
            if not hasattr(found, attribute):
                raise SubjectError(f"{name}: {getattr(found, '__name__', found)} has no {attribute!r}")
            found = getattr(found, attribute)
        if not isinstance(found, nn.Module):
            if not callable(found):
                raise SubjectError(f"{name} is neither a model nor what makes one, but {type(found).__name__}")
            wanted = [p.name for p in inspect.signature(found).parameters.values() if _is_wanted(p)]
            if wanted:
                raise SubjectError(f"{name} is to be called without arguments, but needs {', '.join(wanted)}")
            with torch.device(device):
                found = found()
    if not isinstance(found, nn.Module):
        raise SubjectError(f"{name} returns {type(found).__name__}, not a torch.nn.Module")
    return Subject(name, found)


def _is_wanted(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty and parameter.kind not in (
        parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD,
    )  # fmt: skip


def settled(model: nn.Module, *inputs: Tensor) -> nn.Module:
    """The model in eval mode, its running statistics those of `inputs`: without them random weights make scores grow
    beyond all bounds."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        for _ in range(2 if norms else 0):
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # the mean over all that it sees
            model.train()(*inputs)
    return model.eval()
