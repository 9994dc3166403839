"""The worked examples and identities of docs/mathematics.md, whose tables are read from the document itself."""

import doctest
import re
import sys
from pathlib import Path

import pytest
import torch

import conv_ext
from passes import call, fill
from problems import CORNERS, NETWORK, SMALL, Problem

PAGE = Path(__file__).resolve().parents[2] / "docs" / "mathematics.md"
TEXT = PAGE.read_text(encoding="utf-8").replace("−", "-")
sys.path.insert(0, str(PAGE.parent))

import make_mathematics  # noqa: E402


def table(first_heading):
    """Rows of the last table whose first column has this heading."""
    blocks = re.findall(r"(?:^\|.*\|\n)+", TEXT, re.MULTILINE)
    found = [b for b in blocks if b.startswith(f"| {first_heading} |")]
    assert len(found) >= 1, first_heading
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in found[-1].splitlines()]
    return rows[2:]


def numbers(text):
    """A matrix, rows separated by slashes; one row is a vector."""
    rows = [[float(v) for v in row.split(",")] for row in text.split("/")]
    return torch.tensor(rows if len(rows) > 1 else rows[0])


def evaluated(formula, values):
    """A sum of products such as g00·w01 + g01·w00, indices being single digits."""
    total = 0.0
    for product in formula.split(" + "):
        factors = product.split("·") if product != "0" else ["0"]
        term = 1.0
        for factor in factors:
            term *= 0.0 if factor == "0" else values[factor[0]][tuple(int(i) for i in factor[1:])].item()
        total += term
    return total


def as_conv(x, w, g, stride=1, dilation=1):
    """(y, dx, dw) of 1-D or 2-D values by the three operators."""
    x4, w4, g4 = (t.reshape(1, 1, -1, t.shape[-1]) for t in (x, w, g))
    z = Problem("example", 1, 1, *x4.shape[2:], 1, *w4.shape[2:], (1, stride), dilation=(1, dilation))
    assert (z.p, z.q) == g4.shape[2:]
    results = call("forward", x4, w4, z), call("input_grad", g4, w4, z), call("weight_grad", g4, x4, z)
    return {name: r.reshape(t.shape) for name, r, t in zip(("y", "dx", "dw"), results, (g, x, w))}


def check_rows(rows, values, results):
    """Each row's formula, evaluated, is its value; and so is the operator's result."""
    for name, formula, value in rows:
        letter, index = re.fullmatch(r"(d?[a-z])(\d+)", name).groups()
        assert evaluated(formula, values) == float(value), name
        assert results[letter][tuple(int(i) for i in index)].item() == float(value), name


# ---- the examples


def two_by_two():
    given = {name: numbers(values) for name, values in table("letter") if name in "xwg"}
    assert [tuple(given[n].shape) for n in "xwg"] == [(3, 3), (2, 2), (2, 2)]
    return given


@pytest.mark.parametrize("heading, count", [("output", 4), ("input gradient", 9), ("weight gradient", 4)])
def test_two_by_two_on_three_by_three(heading, count):
    given, rows = two_by_two(), table(heading)
    assert len(rows) == count
    check_rows(rows, given, as_conv(given["x"], given["w"], given["g"]))


def test_the_formulas_hold_for_any_numbers():
    """Not only for those of the example."""
    for seed in range(5):
        values = {n: fill(s, torch.float32, "integers", seed) for n, s in (("x", (3, 3)), ("w", (2, 2)), ("g", (2, 2)))}
        results = as_conv(values["x"], values["w"], values["g"])
        for heading in ("output", "input gradient", "weight gradient"):
            check_rows([(n, f, evaluated(f, values)) for n, f, _ in table(heading)], values, results)


def test_two_by_two_through_autograd():
    given = two_by_two()
    x, w = (given[n].reshape(1, 1, *given[n].shape).requires_grad_() for n in "xw")
    b = torch.zeros(1, requires_grad=True)
    y = conv_ext.conv2d(x, w, b)
    y.backward(given["g"].view(1, 1, 2, 2))
    for heading, got in (("output", y), ("input gradient", x.grad), ("weight gradient", w.grad)):
        assert got.flatten().tolist() == [float(value) for _, _, value in table(heading)]
    assert b.grad.item() == given["g"].sum() == 5
    assert "the bias gradient is the sum of g**: 2 + 1 - 1 + 3 = 5" in " ".join(TEXT.split())


def test_inner_products():
    given = two_by_two()
    results = as_conv(given["x"], given["w"], given["g"])
    wanted = {
        "⟨y, g⟩": (results["y"], given["g"]),
        "⟨x, dx⟩": (given["x"], results["dx"]),
        "⟨w, dw⟩": (given["w"], results["dw"]),
    }
    rows = table("inner product")
    assert [name for name, _ in rows] == list(wanted)
    for name, value in rows:
        assert (wanted[name][0] * wanted[name][1]).sum() == float(value)


def test_minimal_filtering():
    """The example of F(2, 3): its transforms, products and outputs; and that the formulas hold for any numbers."""
    text = " ".join(TEXT.split())
    winograd = text[text.index("Winograd's minimal") :]
    x, w = (numbers(re.search(rf"{letter} = \[([^]]*)\]", winograd)[1]) for letter in "xw")
    rows = table("point")
    assert [row[0] for row in rows] == ["0", "1", "-1", "infinity"]

    def value(formula, values):
        names = {f"{letter}{i}": v.item() for letter, t in values.items() for i, v in enumerate(t)}
        return eval(formula, {"__builtins__": {}}, names)

    for _, of_input, input_value, of_weight, weight_value, product in rows:
        assert value(of_input, {"x": x}) == float(input_value) and value(of_weight, {"w": w}) == float(weight_value)
        assert float(input_value) * float(weight_value) == float(product)
    for seed in range(5):
        x, w = fill((4,), torch.float32, "integers", seed), fill((3,), torch.float32, "integers", seed + 9)
        m = [value(row[1], {"x": x}) * value(row[3], {"w": w}) for row in rows]
        wanted = conv_ext.conv1d(x.view(1, 1, 4), w.view(1, 1, 3)).flatten().tolist()
        assert [m[0] + m[1] + m[2], m[1] - m[2] + m[3]] == wanted
    assert "y0 = m(0) + m(1) + m(-1) = 9 and y1 = m(1) - m(-1) + m(∞) = 16" in text


def test_one_dimension():
    f, g = (numbers(re.search(rf"{letter} = \[([^]]*)\]", TEXT)[1]) for letter in "fg")
    assert f.tolist() == [0, 1, 2, -1, 3] and g.tolist() == [1, 1, 0]
    rows = table("result")
    assert len(rows) == 4
    for name, kernel, padding, values in rows:
        laid = g.flip(0) if name.startswith("convolution") else g
        assert laid.tolist() == numbers(kernel).tolist()
        got = conv_ext.conv1d(f.view(1, 1, -1), laid.view(1, 1, -1), padding=int(padding)).flatten()
        assert got.tolist() == numbers(values).tolist()
    # the definition of the true convolution, sum over j of f[j] g[i - j]
    full = [sum(f[j] * g[i - j] for j in range(5) if 0 <= i - j < 3).item() for i in range(7)]
    by_name = {name: numbers(values).tolist() for name, _, _, values in rows}
    assert by_name["convolution, full"] == full
    assert by_name["convolution, valid"] == full[2:5]
    assert by_name["convolution, same"] == full[1:6]


@pytest.mark.parametrize("heading, w, g, stride, dilation", [
    ("strided", [2, -1, 1], [1, 3], 2, 1),
    ("dilated", [2, -1], [1, 0, -2, 3], 1, 2),
])  # fmt: skip
def test_stride_and_dilation(heading, w, g, stride, dilation):
    values = {"x": torch.tensor([1.0, 2, -1, 3, 0, 4]), "w": torch.tensor(w).float(), "g": torch.tensor(g).float()}
    assert all(str(values[n].int().tolist()) in TEXT for n in "xwg")
    results = {n: r.flatten() for n, r in as_conv(values["x"], values["w"], values["g"], stride, dilation).items()}
    rows = table(heading)
    assert len(rows) == sum(len(r) for r in results.values())
    check_rows(rows, values, results)


def test_strided_gradients_seen_as_convolutions():
    padded, rotated, dx = re.search(r"\[([^]]*)\]  with  \[([^]]*)\]   gives   \[([^]]*)\]", TEXT).groups()
    line, kernel = numbers(padded).view(1, 1, -1), numbers(rotated).view(1, 1, -1)
    assert conv_ext.conv1d(line, kernel).flatten().tolist() == numbers(dx).tolist()
    assert numbers(dx).tolist() == [float(v) for n, _, v in table("strided") if n.startswith("dx")]
    dw = re.search(r"taps of \[1, 3\] two apart give \[([^]]*)\]", TEXT)[1]
    x = torch.tensor([1.0, 2, -1, 3, 0, 4]).view(1, 1, -1)
    assert conv_ext.conv1d(x, torch.tensor([[[1.0, 3]]]), dilation=2).flatten().tolist() == numbers(dw).tolist()


def test_output_sizes():
    rows = [[int(v) for v in row] for row in table("H")]
    assert len(rows) >= 8
    for h, padding, dilation, r, stride, p, rest in rows:
        assert (h + 2 * padding - dilation * (r - 1) - 1) // stride + 1 == p
        assert (h + 2 * padding - dilation * (r - 1) - 1) % stride == rest
        x, w = torch.zeros(1, 1, h, 1, device="meta"), torch.zeros(1, 1, r, 1, device="meta")
        assert conv_ext.conv2d(x, w, None, (stride, 1), (padding, 0), (dilation, 1)).shape == (1, 1, p, 1)
        x, w = torch.zeros(1, 1, h), torch.zeros(1, 1, r)
        assert conv_ext.conv1d(x, w, None, stride, padding, dilation).shape == (1, 1, p)


def test_examples():
    """All of them, one after the other: they go on from each other, as `python -m doctest` runs them."""
    assert len(doctest.DocTestParser().get_examples(PAGE.read_text(encoding="utf-8"))) > 90
    assert doctest.testfile(str(PAGE), module_relative=False, encoding="utf-8").failed == 0


def test_numerical_derivatives():
    """Their tables: a linear function at w, and the errors of the cube's derivative; and the rest of the numbers."""
    said = re.search(r"two taps w = \[([^]]*)\] on two inputs \[([^]]*)\]", TEXT)
    w, x = ([float(v) for v in row.split(",")] for row in said.groups())

    def output(taps):
        return sum(a * b for a, b in zip(taps, x))

    rows = table("changed")
    assert len(rows) == 3 and output(w) == pytest.approx(float(rows[0][1]), abs=1e-12)
    for i, (changed, value, quotient) in enumerate(rows[1:]):
        taps = [tap + 1e-6 * (i == j) for j, tap in enumerate(w)]
        assert changed == f"w{i} = {taps[i]:.6f}"
        assert output(taps) == pytest.approx(float(value), abs=1e-12)
        assert (float(value) - float(rows[0][1])) / 1e-6 == pytest.approx(float(quotient), abs=1e-6)
    exact = 3 * output(w) ** 2 * x[0]
    assert f"3·(-0.46)²·0.5 = {exact:.4f} by w0" in TEXT
    rows = table("h")
    assert len(rows) == 3
    for h, one, two in rows:
        up, here, down = (output([w[0] + step, w[1]]) ** 3 for step in (float(h), 0, -float(h)))
        assert f"{abs((up - here) / float(h) - exact):.1e}" == one
        assert f"{abs((up - down) / (2 * float(h)) - exact):.1e}" == two


def test_polynomials_of_minimal_filtering():
    """Steps 2 and 3: the coefficients are the input gradient, and what the four products are said to give."""
    g, w = torch.tensor([2.0, 5]), torch.tensor([3.0, -1, 4])
    dx = as_conv(torch.zeros(4), w, g)["dx"]
    lines = TEXT[TEXT.index("g0·w0 + (g0·w1") :]
    coefficients = re.findall(r"g0·w0 \+ \((.*?)\)·t \+ \((.*?)\)·t² \+ (.*?)·t³", lines)[0]
    values = {"g": g, "w": w}
    assert [evaluated(formula, values) for formula in ("g0·w0", *coefficients)] == dx.flatten().tolist()
    names = {f"{letter}{i}": v.item() for letter, t in values.items() for i, v in enumerate(t)}
    rows = table("at")
    assert [row[0] for row in rows] == ["t = 0", "t = 1", "t = -1", "t = ∞"]
    at = [eval(a, {}, names) * eval(b, {}, names) for _, a, b in rows]
    d0, d1, d2, d3 = dx.flatten().tolist()
    assert at == [d0, d0 + d1 + d2 + d3, d0 - d1 + d2 - d3, d3]
    # Back from the values: dx, and T as a sum over the four of them.
    named = {"p(0)": "p0", "p(1)": "p1", "p(-1)": "pm", "p(∞)": "pi", "·": "*"}

    def formula(text):
        for sign, word in named.items():
            text = text.replace(sign, word)
        x = {"x0": 3.0, "x1": -2.0, "x2": 7.0, "x3": 4.0}
        return eval(text, {"__builtins__": {}}, {**dict(zip(("p0", "p1", "pm", "pi"), at)), **x})

    said = re.search(r"^ +dx0 = (.*?)  +dx1 = (.*?)  +dx2 = (.*?)  +dx3 = (.*?)$", TEXT, re.MULTILINE).groups()
    assert [formula(text) for text in said] == [d0, d1, d2, d3]
    form = re.search(r"^    T = (p\(0\).*)$", TEXT, re.MULTILINE)[1]
    assert formula(form) == 3 * d0 - 2 * d1 + 7 * d2 + 4 * d3


def test_counts_of_products():
    """Of tiles in two dimensions, and the table of ways."""
    text = " ".join(TEXT.split())
    for outputs, taps, said in ((2, 3, "with 16 products instead of 36"),
                                (4, 3, "F(4×4, 3×3), of 36 products instead of 144"),
                                (4, 5, "F(4×4, 5×5) has 64 instead of 400")):  # fmt: skip
        assert said in text
        assert [int(v) for v in re.findall(r"\b\d\d+\b", said)] == [(outputs + taps - 1) ** 2, (outputs * taps) ** 2]
    formulas = {"direct": lambda n, r: r**2 * (n - r + 1) ** 2, "minimal filtering": lambda n, r: n**2,
                "Fourier": lambda n, r: 3 * n * (n // 2 + 1)}  # fmt: skip
    rows, tiles = table("way"), [(4, 3), (6, 3), (16, 3), (32, 11)]
    assert "| 3 × 3, tile 4 | 3 × 3, tile 6 | 3 × 3, tile 16 | 11 × 11, tile 32 |" in TEXT
    assert [row[0] for row in rows] == list(formulas)
    for name, _, *values in rows:
        for (n, r), value in zip(tiles, values):
            if value:
                assert float(value) == round(formulas[name](n, r) / (n - r + 1) ** 2, 2), (name, n)


def test_pictures():
    """Those that the page shows are there, and no others; their operands are those of its examples."""
    shown = re.findall(r"!\[[^]]+\]\(mathematics/(\w+\.png)\)", TEXT)
    assert sorted(shown) == sorted(path.name for path in (PAGE.parent / "mathematics").iterdir()) and len(shown) > 15
    given = two_by_two()
    assert all(torch.equal(given[name], getattr(make_mathematics, name.upper())) for name in "xwg")
    assert torch.equal(make_mathematics.ROW, torch.tensor([1.0, 2, -1, 3, 0, 4]))


@pytest.mark.exhaustive
@pytest.mark.parametrize("make", make_mathematics.MAKERS, ids=lambda make: make.__name__)
def test_pictures_can_be_drawn(make):
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    drawn = make()
    for figure in drawn.values() if isinstance(drawn, dict) else [drawn]:
        assert figure._repr_png_().startswith(b"\x89PNG")


def test_it_says_first_what_a_convolution_is():
    assert TEXT.split("\n\n")[1].startswith("**What torch calls a convolution is the correlation.**")


# ---- the identities, for whole problems


DENSE = [z for z in SMALL + CORNERS + NETWORK if z.groups == 1]
dense = pytest.mark.parametrize("z", DENSE, ids=str)


def integers(z):
    shapes = z.input_shape, z.weight_shape, z.output_shape
    return [fill(shape, torch.float64, "integers", seed) for seed, shape in enumerate(shapes)]


@dense
def test_input_gradient_is_the_full_convolution_with_the_rotated_kernel(z):
    _, w, g = integers(z)
    spread = g.new_zeros(z.n, z.k, (z.p - 1) * z.stride[0] + 1, (z.q - 1) * z.stride[1] + 1)
    spread[:, :, :: z.stride[0], :: z.stride[1]] = g
    padding = []
    for size, taps, stride, dilation, (a, e) in zip(
        (z.h, z.w), (z.r, z.s), z.stride, z.dilation, (z.padding[:2], z.padding[2:])
    ):
        rest = (size + a + e - dilation * (taps - 1) - 1) % stride
        padding += [dilation * (taps - 1) - a, dilation * (taps - 1) - e + rest]
    top, bottom, left, right = padding
    padded = torch.nn.functional.pad(spread, (left, right, top, bottom))  # a negative padding cuts off
    got = conv_ext.conv2d(padded, w.flip(2, 3).transpose(0, 1), dilation=z.dilation)
    assert torch.equal(got, call("input_grad", g, w, z))


@dense
def test_weight_gradient_is_the_correlation_of_input_and_upstream_gradient(z):
    x, _, g = integers(z)
    top, bottom, left, right = z.padding
    padded = torch.nn.functional.pad(x, (left, right, top, bottom))
    got = conv_ext.conv2d(padded.transpose(0, 1), g.transpose(0, 1), stride=z.dilation, dilation=z.stride)
    assert torch.equal(got[:, :, : z.r, : z.s].transpose(0, 1), call("weight_grad", g, x, z))


@dense
def test_bias_gradient_is_the_sum(z):
    x, w, g = integers(z)
    b = torch.zeros(z.k, dtype=torch.float64, requires_grad=True)
    y = torch.ops.conv_ext.forward(x, w, b, z.stride, z.padding, z.dilation, z.groups)
    y.backward(g)
    assert torch.equal(b.grad, g.sum((0, 2, 3)))


def test_derivatives_of_the_three_kernels():
    """The table of derivatives, every entry by autograd."""
    z = SMALL[0]
    x, w, g = integers(z)
    u = {"forward": g + 1, "input_grad": x - 2, "weight_grad": w + 3}
    operands = {"forward": (x, w), "input_grad": (g, w), "weight_grad": (g, x)}
    names = {"forward": "xw", "input_grad": "gw", "weight_grad": "gx"}
    rows = table("kernel")
    assert len(rows) == 3 and len(rows[0]) == 3
    for row in rows:
        pass_name = re.match(r"`(\w+)", row[0])[1]
        leaves = [t.clone().requires_grad_() for t in operands[pass_name]]
        grads = torch.autograd.grad(call(pass_name, *leaves, z), leaves, u[pass_name])
        values = dict(zip(names[pass_name], operands[pass_name]), u=u[pass_name])
        for cell, grad in zip(row[1:], grads):
            derivative, first, second = re.fullmatch(r"`(\w+)\((\w), (\w)\)`", cell).groups()
            assert torch.equal(grad, call(derivative, values[first], values[second], z)), cell
