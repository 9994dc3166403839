"""torch.func: every transform and nest of transforms, through the public function, the operator and the Function."""

import warnings

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, stack_module_state, vjp, vmap

import conv_ext
from calls import Calls
from conv_ext.autograd import Forward, InputGrad, WeightGrad
from devices import device, randn

pytestmark = pytest.mark.usefixtures("each_device")

STRIDE, PADDING, DILATION, GROUPS = (2, 1), (1, 0), (1, 2), 2
GEOMETRY = (STRIDE, (1, 1, 0, 0), DILATION, GROUPS)
X, W, B = (2, 4, 4, 5), (6, 2, 3, 2), (6,)  # one call's operands


def theirs(x, w, b):
    return F.conv2d(x, w, b, STRIDE, PADDING, DILATION, GROUPS)


ENTRANCES = {
    "public": lambda x, w, b: conv_ext.conv2d(x, w, b, STRIDE, PADDING, DILATION, GROUPS),
    "operator": lambda x, w, b: torch.ops.conv_ext.forward(x, w, b, *GEOMETRY),
    "Function": lambda x, w, b: Forward.apply(x, w, b, *GEOMETRY, "ieee", "auto", "none"),
}


def scalar(f):
    return lambda *args: f(*args).sin().pow(2).sum()


def tensors(*shapes):
    return [randn(shape, dtype=torch.float64) for shape in shapes]


def many(shape, dim, size=3):
    return (*shape[:dim], size, *shape[dim:])


def in_ordinary_autograd(f):
    """Transforms inside, ordinary autograd of both modes around them."""
    x, w, b = (t.requires_grad_() for t in tensors(X, W, B))
    inner = grad(scalar(f), 1)(x, w, b)
    reverse = torch.autograd.grad(inner.pow(2).sum(), (x, w, b))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.detach(), torch.ones_like(x))
        forward = forward_ad.unpack_dual(grad(scalar(f), 1)(dual, w.detach(), b.detach())).tangent
    y = vmap(f, (0, None, None))(x[:, None], w, b)
    return reverse, forward, torch.autograd.grad(y.sin().sum(), (x, w, b))


def silent(f):
    """no_grad inside a transform: what is computed there is a constant."""

    def loss(x, w, b):
        with torch.no_grad():
            y = f(x, w, b)
        return (y * f(x, w, b)).sum()

    return grad(loss, (0, 1, 2))(*tensors(X, W, B))


def doubled(f):
    """A tangent, its derivative, and the derivative of that."""
    x, w, b = tensors(X, W, B)
    along = tensors(X, W, B)
    first = lambda *args: jvp(f, args, tuple(along))[1]  # noqa: E731
    second = lambda *args: jvp(first, args, tuple(along))[1]  # noqa: E731
    return jvp(second, (x, w, b), tuple(along)), grad(scalar(second), (0, 1))(x, w, b)


ALL = (0, 1, 2)
ONE = (1, *X[1:])
TRANSFORMS = {
    "grad": lambda f: grad(scalar(f), ALL)(*tensors(X, W, B)),
    "vjp": lambda f: (lambda y, pull: pull(torch.ones_like(y)))(*vjp(f, *tensors(X, W, B))),
    "jvp": lambda f: jvp(f, tuple(tensors(X, W, B)), tuple(tensors(X, W, B))),
    "linearize": lambda f: linearize(f, *tensors(X, W, B))[1](*tensors(X, W, B)),
    "jacrev": lambda f: jacrev(f, ALL)(*tensors(X, W, B)),
    "jacfwd": lambda f: jacfwd(f, ALL)(*tensors(X, W, B)),
    "hessian": lambda f: hessian(scalar(f), (0, 1))(*tensors(ONE, W, B)),
    "jacrev of jacrev": lambda f: jacrev(jacrev(scalar(f), (0, 1)), (0, 1))(*tensors(ONE, W, B)),
    "jacrev of jacfwd": lambda f: jacrev(jacfwd(scalar(f), (0, 1)), (0, 1))(*tensors(ONE, W, B)),
    "jacfwd of jacfwd": lambda f: jacfwd(jacfwd(scalar(f), (0, 1)), (0, 1))(*tensors(ONE, W, B)),
    "jvp of jvp of jvp": doubled,
    "grad of grad of grad": lambda f: grad(scalar(grad(scalar(grad(scalar(f), 1)), 0)), ALL)(*tensors(X, W, B)),
    "jvp of grad": lambda f: jvp(grad(scalar(f), ALL), tuple(tensors(X, W, B)), tuple(tensors(X, W, B))),
    "gradients per sample": lambda f: vmap(grad(scalar(f), ALL), (0, None, None))(*tensors(many(X, 0), W, B)),
    "gradients of an ensemble": lambda f: vmap(grad(scalar(f), ALL), (None, 0, 1))(*tensors(X, many(W, 0), many(B, 1))),
    "grad of vmap": lambda f: grad(lambda *args: vmap(f, (1, 2, None))(*args).sin().sum(), ALL)(
        *tensors(many(X, 1), many(W, 2), B)
    ),
    "vmap of hessian": lambda f: vmap(hessian(scalar(f), 1), (0, None, None))(*tensors(many(ONE, 0), W, B)),
    "vmap of vmap": lambda f: vmap(vmap(f, (0, None, None)), (None, 0, 0))(
        *tensors(many(X, 0), many(W, 0, 2), many(B, 0, 2))
    ),
    "ordinary autograd around": in_ordinary_autograd,
    "no_grad inside": silent,
}


@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms(name, entrance):
    results = []
    for f in (ENTRANCES[entrance], theirs):
        torch.manual_seed(2)  # both see the same tensors
        results.append(TRANSFORMS[name](f))
    torch.testing.assert_close(*results)


TRANSPOSED = dict(stride=(2, 3), padding=(1, 0), output_padding=(1, 0), groups=2, dilation=(1, 2))


@pytest.mark.parametrize(
    "ours, torchs, shapes",
    [
        (conv_ext.conv_transpose2d, F.conv_transpose2d, ((2, 4, 3, 2), (4, 3, 3, 2), (6,))),
        (conv_ext.conv1d, F.conv1d, ((2, 4, 7), (6, 2, 3), (6,))),
        (conv_ext.conv_transpose1d, F.conv_transpose1d, ((2, 4, 3), (4, 3, 3), (6,))),
    ],
    ids=["conv_transpose2d", "conv1d", "conv_transpose1d"],
)
def test_the_other_functions(ours, torchs, shapes):
    options = TRANSPOSED if ours is conv_ext.conv_transpose2d else dict(stride=2, padding=1, dilation=2, groups=2)
    results = []
    for function in (ours, torchs):
        torch.manual_seed(2)
        f = lambda x, w, b: function(x, w, b, **options)  # noqa: B023, E731
        x, w, b = tensors(*shapes)
        results.append((
            hessian(scalar(f), 1)(x, w, b),
            jvp(f, (x, w, b), (x, w, b)),
            vmap(grad(scalar(f), ALL), (0, None, None))(x[:, None], w, b),
            vmap(f, (None, 0, 0))(x, *tensors(many(shapes[1], 0), many(shapes[2], 0))),
        ))  # fmt: skip
    torch.testing.assert_close(*results)


# operator, its Function, the operands' shapes, the size argument, the Function's trailing arguments
OPERATORS = {
    "forward": (Forward, (X, W, B), (), ("ieee", "auto", "none")),
    "input_grad": (InputGrad, ((2, 6, 2, 3), W), (X[2:],), ("ieee", "auto")),
    "weight_grad": (WeightGrad, ((2, 6, 2, 3), X), (W[2:],), ("ieee", "auto")),
}
BATCHED = {
    "forward": [(0, None, None), (2, None, None), (None, 0, None), (None, 3, 0), (1, 2, 1), (0, 0, None),
                (None, None, 1), (3, None, 0)],
    "input_grad": [(0, None), (None, 1), (2, 3), (0, 0)],
    "weight_grad": [(1, None), (None, 4), (3, 2), (0, 0)],
}  # fmt: skip


@pytest.mark.parametrize("through", ["operator", "Function"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("name, dims", [(name, dims) for name in BATCHED for dims in BATCHED[name]], ids=str)
def test_vmap_is_one_folded_call(name, dims, groups, through):
    function, shapes, size, options = OPERATORS[name]
    if groups == 1:  # C/g is C
        shapes = [(W[0], X[1], *W[2:]) if shape == W else shape for shape in shapes]
    rest = (*size, STRIDE, (1, 1, 0, 0), DILATION, groups, *options)
    call = function.apply if through == "Function" else getattr(torch.ops.conv_ext, name)
    args = tensors(*(shape if dim is None else many(shape, dim) for shape, dim in zip(shapes, dims)))
    rows = [call(*(t if d is None else t.select(d, i) for t, d in zip(args, dims)), *rest) for i in range(3)]
    with warnings.catch_warnings(), Calls() as calls:
        warnings.simplefilter("error")  # the fallback loop warns
        folded = vmap(lambda *args: call(*args, *rest), dims)(*args)
    assert calls.names == [name]
    torch.testing.assert_close(folded, torch.stack(rows))
    torch.testing.assert_close(vmap(lambda *args: call(*args, *rest), dims, out_dims=2)(*args), torch.stack(rows, 2))


def test_vmap_of_an_empty_batch_of_images():
    y = vmap(ENTRANCES["public"], (0, None, None))(*tensors((3, 0, *X[1:]), W, B))
    assert y.shape == (3, 0, 6, 2, 3)


def test_complex_operands():
    results = []
    for f in (ENTRANCES["public"], theirs):
        torch.manual_seed(2)
        x, w, b = (randn(shape, dtype=torch.complex128) for shape in (X, W, B))
        loss = lambda *args: (f(*args).abs() ** 2).sum()  # noqa: B023, E731
        results.append((
            grad(loss, ALL)(x, w, b),
            jvp(f, (x, w, b), (x, w, b)),
            vmap(grad(loss, ALL), (0, None, None))(x[:, None], w, b),
            jvp(grad(loss, ALL), (x, w, b), (x, w, b)),
        ))  # fmt: skip
    torch.testing.assert_close(*results)


def test_an_ensemble_of_modules():
    make = lambda: torch.nn.Sequential(  # noqa: E731
        conv_ext.Conv2d(3, 4, (3, 2), padding=(1, 0)), torch.nn.Tanh(), conv_ext.Conv2d(4, 2, (1, 3), stride=(2, 1))
    ).to(device())
    models, x = [make() for _ in range(3)], randn(2, 3, 5, 7)
    parameters, buffers = stack_module_state(models)
    outputs = vmap(lambda p, b, x: functional_call(models[0], (p, b), (x,)), (0, 0, None))(parameters, buffers, x)
    torch.testing.assert_close(outputs, torch.stack([model(x) for model in models]))


BAD_UNDER_VMAP = {
    "a bias of another dtype": (
        lambda x, w: vmap(lambda b: conv_ext.conv2d(x, w, b))(torch.zeros(5, 4).double()), "bias type",
    ),
    "a bias of one number": (lambda x, w: vmap(lambda b: conv_ext.conv2d(x, w, b))(torch.zeros(5, 1)), "1-dimensional"),
    "a bias with two dimensions": (
        lambda x, w: vmap(lambda w: conv_ext.conv2d(x, w, torch.zeros(5, 4)))(w.expand(5, -1, -1, -1, -1)),
        "1-dimensional with 4",
    ),
    "no groups": (
        lambda x, w: vmap(lambda w: conv_ext.conv2d(x, w, groups=0))(w.expand(5, -1, -1, -1, -1)), "got 0",
    ),
    "groups of both": (
        lambda x, w: vmap(lambda x: conv_ext.conv2d(x, x[:, :, :3, :3], groups=-1))(x.expand(5, -1, -1, -1, -1)),
        "got -1",
    ),
    "too many groups": (
        lambda x, w: vmap(lambda w: conv_ext.conv2d(x, w, groups=2**62))(w.expand(5, -1, -1, -1, -1)),
        "Given groups=4611686018427387904",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_UNDER_VMAP)
def test_what_one_example_would_be_refused_for_is_refused_under_vmap(name):
    call, message = BAD_UNDER_VMAP[name]
    with pytest.raises(RuntimeError, match=message):
        call(torch.zeros(2, 3, 5, 5), torch.zeros(4, 3, 3, 3))


@pytest.mark.parametrize("in_dims", [(0, None), (None, 0), (0, 0)])
def test_vmap_over_nothing(in_dims):
    x, w = torch.randn(2, 3, 5, 5), torch.randn(4, 3, 3, 3)
    x, w = (t if dim is None else t.new_empty(0, *t.shape).requires_grad_() for t, dim in zip((x, w), in_dims))
    y = vmap(conv_ext.conv2d, in_dims)(x, w)
    assert y.shape == (0, 2, 4, 3, 3)
    for leaf in (x, w):
        if leaf.requires_grad:
            assert torch.autograd.grad(y.sum(), leaf, retain_graph=True)[0].shape == leaf.shape
    per_example = vmap(grad(lambda x, w: conv_ext.conv2d(x, w).sum(), (0, 1)), in_dims)(x.detach(), w.detach())
    assert [t.shape for t in per_example] == [(0, 2, 3, 5, 5), (0, 4, 3, 3, 3)]
