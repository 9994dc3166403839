"""Exported to ONNX by either of torch's exporters, a model of ours computes what it computes here."""

import io
import warnings

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.onnx.utils import unregister_custom_op_symbolic

import conv_ext
from conv_ext import models, onnx

onnx_package = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
BATCH, IMAGES, SEQUENCES = {0: "n"}, {0: "n", 2: "h", 3: "w"}, {0: "n", 2: "w"}
X = (2, 4, 9, 8)


def with_norm(*layers):
    torch.manual_seed(0)
    model = nn.Sequential(*layers)
    for layer in model:
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-1, 1)
            layer.running_var.uniform_(0.5, 2)
    return model.eval()


def packed():
    model = with_norm(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU())
    made = conv_ext.pack(model, torch.randn(1, 64, 7, 6))
    assert made[0].packed_bytes > 0
    return made


# name: the model, its input, which dimensions are dynamic, the operators of the graph that compute
MODELS = {
    "converted": (
        lambda: conv_ext.convert(with_norm(nn.Conv2d(4, 6, 3, 2, padding=1, groups=2), nn.Sigmoid())),
        X, BATCH, ["Conv", "Sigmoid"],
    ),
    "fused": (
        lambda: conv_ext.fuse(with_norm(nn.ZeroPad2d((2, 0, 1, 0)), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU())),
        X, IMAGES, ["Conv", "Relu"],
    ),
    "packed": (packed, (2, 64, 7, 6), BATCH, ["Conv", "Relu"]),
    "full": (lambda: conv_ext.Conv2d(4, 6, (4, 2), 2, "full", dilation=2), X, IMAGES, ["Conv"]),
    "same": (lambda: conv_ext.Conv2d(4, 6, 4, padding="same", activation="relu"), X, IMAGES, ["Conv", "Relu"]),
    "same_strided": (lambda: conv_ext.Conv2d(4, 6, 4, 3, "same_strided", bias=False), X, IMAGES, ["Conv"]),
    "transposed": (lambda: conv_ext.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2), X, BATCH, ["ConvTranspose"]),
    "transposed, any size": (
        lambda: conv_ext.ConvTranspose2d(4, 6, (3, 2), (2, 3), 1, (1, 2), bias=False), X, IMAGES, ["ConvTranspose"],
    ),
    "more positions": (  # an output padding of a stride
        lambda: conv_ext.ConvTranspose2d(4, 6, 3, 2, output_padding=2, dilation=3), X, IMAGES, ["ConvTranspose"],
    ),
    "sequences": (
        lambda: nn.Sequential(conv_ext.Conv1d(4, 6, 3, activation="relu"), conv_ext.ConvTranspose1d(6, 3, 4, 2)),
        (2, 4, 9), SEQUENCES, ["Conv", "Relu", "ConvTranspose"],
    ),
    "mapped": (lambda: conv_ext.MappedConv2d([[0, 1], [2, 3], [0]], 3, dense=False), X, BATCH, ["Conv", "Conv"]),
    "lenet5": (lambda: conv_ext.fuse(models.lenet5(activation="relu").eval()), (1, 1, 32, 32), BATCH, None),
}  # fmt: skip


class Epilogue(nn.Module):
    """A convolution with a residual and an activation, whose padding is numbers or a string."""

    def __init__(self, activation, padding):
        super().__init__()
        self.weight, self.activation, self.padding = nn.Parameter(torch.randn(6, 4, 3, 3)), activation, padding

    def forward(self, x):
        residual = torch.sin(3 * x.sum(1, keepdim=True)).expand(-1, 6, -1, -1)
        return conv_ext.conv2d(x, self.weight, padding=self.padding, activation=self.activation, residual=residual)


ACTIVATIONS = (*conv_ext.arguments.ACTIVATIONS, ("clamp", -0.5, 0.75))


def run(model: bytes, x: torch.Tensor) -> torch.Tensor:
    """What onnxruntime makes of it; where that is missing, onnx's own definition of its operators."""
    try:
        import onnxruntime

        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        session = ReferenceEvaluator(onnx_package.load_from_string(model))
        name = session.input_names[0]
    return torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def by_dynamo(model: nn.Module, x: torch.Tensor, dynamic: dict) -> bytes:
    shapes = {dimension: Dim(name, min=1, max=1000) for dimension, name in dynamic.items()}
    table = onnx.translation_table()
    program = torch.onnx.export(
        model, (x,), dynamo=True, verbose=False, custom_translation_table=table, dynamic_shapes=(shapes,)
    )
    file = io.BytesIO()
    program.save(file)
    return file.getvalue()


def by_tracing(model: nn.Module, x: torch.Tensor, dynamic: dict) -> bytes:
    file = io.BytesIO()
    torch.onnx.export(
        model, (x,), file, dynamo=False, input_names=["x"], output_names=["y"], dynamic_axes={"x": dynamic}
    )
    return file.getvalue()


@pytest.fixture
def symbolics():
    onnx.register_symbolics()
    yield
    for name in ("forward", "forward_packed", *(f"recorded_conv{t}{n}d" for t in ("", "_transpose") for n in (1, 2))):
        unregister_custom_op_symbolic(f"conv_ext::{name}", 11)


@pytest.mark.usefixtures("symbolics")
@pytest.mark.parametrize("export", [by_dynamo, by_tracing])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_computes_the_same_in_onnx(name, export):
    make, size, dynamic, operators = MODELS[name]
    torch.manual_seed(1)
    model, x = make().eval(), torch.randn(size)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters' own
        exported = export(model, x, dynamic)
        parameters = sum(p.numel() for p in model.state_dict().values())
        assert len(exported) < 4 * parameters + 30_000  # of a packed layer's 257 KiB beside the weight nothing
        graph = onnx_package.load_from_string(exported).graph
        kinds = [node.op_type for node in graph.node if "Conv" in node.op_type or node.op_type in ("Relu", "Sigmoid")]
        assert all(node.domain == "" for node in graph.node) and operators in (None, kinds)
        for larger in (0, 1, 3):
            other = torch.randn([n + larger if i in dynamic else n for i, n in enumerate(size)])
            torch.testing.assert_close(run(exported, other), model(other), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("symbolics")
@pytest.mark.parametrize("export, padding", [(by_dynamo, 1), (by_tracing, 1), (by_tracing, "same")])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_an_epilogue_computes_the_same_in_onnx(activation, export, padding):
    torch.manual_seed(1)
    model, x = Epilogue(activation, padding).eval(), torch.randn(X)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = export(model, x, BATCH)
        other = torch.randn(3, *X[1:])
        torch.testing.assert_close(run(exported, other), model(other), rtol=1e-4, atol=1e-5)


def test_every_activation_has_a_translation_and_another_says_so():
    with pytest.raises(NotImplementedError, match="activation 'unheard' has no translation; these have: relu"):
        onnx._with_epilogue(None, None, "unheard")
    assert {name for name in conv_ext.arguments.ACTIVATIONS[1:] if name != "relu6"} <= set(onnx._ACTIVATIONS)


def test_without_the_packages_it_says_what_to_install(monkeypatch):
    import sys

    for name in [name for name in sys.modules if name.split(".")[0] == "onnxscript"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'conv_ext\[onnx\]'"):
        onnx.translation_table()
