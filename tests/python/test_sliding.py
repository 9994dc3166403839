"""The kernel on its way: what each frame shows multiplies and sums up to what torch computes, in all three passes."""

import itertools
import re

import pytest
import torch
import torch.nn.functional as F

from conv_ext import visualize
from conv_ext.visualize import sliding as sliding_module
from test_visualize import drawn

pytest.importorskip("matplotlib")

GEOMETRIES = list(itertools.product([1, 2, (3, 1)], [0, 1, (2, 3), "same", "full", "same_strided"], [1, (1, 2)]))


def operands():
    """A map, a kernel and an upstream gradient of small whole numbers, as in a textbook."""
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randint(-3, 4, size, generator=generator).double() for size in ((6, 7), (2, 3)))
    return x, w, generator


@pytest.mark.parametrize("of", ["forward", "input_grad", "weight_grad"])
def test_every_frame_is_a_sum_of_what_it_shows(of):
    """And the sums are torch's, whatever the stride, the padding (beyond the kernel, too) and the dilation."""
    tried = 0
    for stride, padding, dilation in GEOMETRIES:
        if padding == "same" and stride != 1:
            continue
        x, w, generator = operands()
        x.requires_grad_()
        w.requires_grad_()
        plain = visualize.convolution(x, w, stride, padding, dilation)
        g = torch.randint(-2, 3, plain.result.shape, generator=generator).double()
        sliding = plain if of == "forward" else visualize.convolution(x, w, stride, padding, dilation, of=of, g=g)
        expected = padded(x, w, stride, padding, dilation)
        if of != "forward":
            expected = torch.autograd.grad(expected, x if of == "input_grad" else w, g)[0]
        torch.testing.assert_close(sliding.result, expected.detach(), rtol=0, atol=1e-12)
        assert len(sliding) == expected.numel()
        for frame, value in enumerate(expected.flatten().tolist()):
            assert sum(a * b for a, b in sliding.products(frame)) == pytest.approx(value, abs=1e-9)
            rows, columns = sliding.covered(frame)
            assert rows.max() < sliding.canvas.shape[0] and columns.max() < sliding.canvas.shape[1]
        assert not sliding.canvas[~sliding.real].any()
        tried += 1
    assert tried == 32


def padded(x, w, stride, padding, dilation):
    """torch's convolution, with the zeros that each padding means written out."""
    stride, dilation = ((n, n) if isinstance(n, int) else n for n in (stride, dilation))
    pads = []
    for axis in (1, 0):  # as F.pad wants them: the last dimension first
        reach = dilation[axis] * (w.shape[axis] - 1)
        if padding == "full":
            pads += [reach, reach]
        elif padding in ("same", "same_strided"):
            n = x.shape[axis]
            total = max(0, (-(-n // stride[axis]) - 1) * stride[axis] + reach + 1 - n)
            pads += [total // 2, total - total // 2]
        else:
            pads += [padding if isinstance(padding, int) else padding[axis]] * 2
    return F.conv2d(F.pad(x, pads)[None, None], w[None, None], stride=stride, dilation=dilation)[0, 0]


def test_the_backward_passes_are_what_the_books_say():
    """The rotated kernel over the padded upstream gradient; the upstream gradient over the input."""
    x, w = torch.tensor([[1.0, 2, 0], [-1, 3, 1], [2, 0, -2]]), torch.tensor([[1.0, -2], [3, 4]])
    g = torch.tensor([[2.0, 1], [-1, 3]])
    back = visualize.convolution(x, w, of="input_grad", g=g)
    assert back.slides.tolist() == [[4, 3], [-2, 1]]
    assert back.canvas.tolist() == [[0, 0, 0, 0], [0, 2, 1, 0], [0, -1, 3, 0], [0, 0, 0, 0]]
    assert back.products(0) == [(4, 0), (3, 0), (-2, 0), (1, 2)] and back.result[0, 0] == 2
    weights = visualize.convolution(x, w, of="weight_grad", g=g)
    assert torch.equal(weights.slides, g.double()) and torch.equal(weights.canvas, x.double())
    assert weights.products(3) == [(2, 3), (1, 1), (-1, 0), (3, -2)] and weights.result[1, 1] == 1
    assert weights.formula(3) == "[1, 1] = 2·3 + 1·1 + (-1)·0 + 3·(-2) = 1"
    spread = visualize.convolution(x, w, 2, 1, of="input_grad")
    assert spread.canvas.tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]


def texts(axes):
    return [text.get_text() for text in axes.texts if text.get_visible()]


def test_a_strip_shows_what_the_frames_have():
    x, w = torch.tensor([[1.0, 2, 0], [-1, 3, 1], [2, 0, -2]]), torch.tensor([[1.0, -2], [3, 4]])
    sliding = visualize.convolution(x, w)
    figure = sliding.strip(2)
    assert len(drawn(figure)) == 6
    left, middle, right, *last = figure.axes
    assert texts(left) == ["1", "2", "0", "-1", "3", "1", "2", "0", "-2", "1", "-2", "3", "4"]
    assert texts(middle) == ["1", "-2", "3", "4"] and texts(right) == ["6"]
    assert [(patch.get_x(), patch.get_y()) for patch in left.patches] == [
        (-0.5, -0.5),
        (0.5, -0.5),
        (-0.5, 0.5),
        (0.5, 0.5),
    ]
    assert texts(last[2]) == ["6", "15", "-1", "-7"] and last[0].patches[0].get_x() == 0.5
    assert [len(axes.images) for axes in figure.axes] == [1] * 6
    assert len(drawn(sliding.strip([2]))) == 3 and len(drawn(sliding.strip(100))) == 12
    large = visualize.convolution(torch.randn(20, 20), torch.randn(5, 5)).strip(1)
    assert texts(large.axes[0]) == [] and len(texts(large.axes[1])) == 25
    assert len(drawn(visualize.convolution(torch.arange(5.0), torch.ones(3)).strip(1))) == 3


def test_an_animation_has_every_frame(tmp_path):
    image = pytest.importorskip("PIL.Image")
    sliding = visualize.convolution(torch.eye(3), torch.ones(2, 2))
    path = sliding.save(tmp_path / "kernel.gif", seconds=0.25, bar=False)
    with image.open(path) as gif:
        assert gif.n_frames == 4 and gif.info["duration"] == 250 and gif.info["loop"] == 0
        shots = []
        for frame in range(4):
            gif.seek(frame)
            shots.append(gif.convert("RGB").tobytes())
    assert len(set(shots)) == 4
    page = sliding.save(str(tmp_path / "kernel.html"), bar=False).read_text(encoding="utf-8")
    assert len(set(re.findall(r'frames\[\d+\] = "data:image/png;base64,([^"]+)"', page))) == 4
    assert page.startswith("<!DOCTYPE html>") and "<script" in sliding._repr_html_()
    with pytest.raises(ValueError, match=r"saved as .gif or .html, got 'kernel.mp4'"):
        sliding.save(tmp_path / "kernel.mp4")


X, W = torch.ones(4, 4), torch.ones(2, 2)


@pytest.mark.parametrize("call, error, message", [
    (lambda: visualize.convolution(X, W, of="backward"), ValueError, "one of 'forward', 'input_grad', 'weight_grad'"),
    (lambda: visualize.convolution(X, W, g=X), ValueError, "g is the upstream gradient of a backward pass"),
    (lambda: visualize.convolution(X, W, of="weight_grad", g=X), ValueError, r"the output, \[3, 3\], got \[4, 4\]"),
    (lambda: visualize.convolution(X[None], W), ValueError, r"x must be one real map .* got \[1, 4, 4\]"),
    (lambda: visualize.convolution(X, W.to(torch.complex64)), ValueError, "w must be one real map"),
    (lambda: visualize.convolution([[1]], W), TypeError, "x must be a tensor, got list"),
    (lambda: visualize.convolution(W, X), RuntimeError, "Kernel size can't be greater than actual input size"),
    (lambda: visualize.convolution(X, W, stride=0), RuntimeError, "stride"),
    (lambda: visualize.convolution(torch.ones(65, 2), W), ValueError, "up to 64 cells a side, this would have 65"),
    (lambda: visualize.convolution(X, W, padding=10**9), ValueError, "cells a side, this would have 2000000004"),
    (lambda: visualize.convolution(X, W, 1, 10**6, 10**6), ValueError, "cells a side, this would have"),
    (lambda: visualize.convolution(X / 0, W), ValueError, "x must be finite, got"),
    (lambda: visualize.convolution(X.to("meta"), W), TypeError, "x must have values to look at, .* meta device"),
    (lambda: visualize.convolution(1e300 * X.double(), 1e300 * W.double()), ValueError, "the result must be finite"),
    (lambda: visualize.convolution(X, W, of=["forward"]), ValueError, "of must be one of 'forward'"),
    (lambda: visualize.convolution(X, W, of="input_grad", g=[1]), TypeError, "g must be a tensor, got list"),
    (lambda: visualize.convolution(X, W).strip(0), ValueError, "frames must be an int of at least 1, got 0"),
    (lambda: visualize.convolution(X, W).strip(1.5), ValueError, "frames must be an int of at least 1, got 1.5"),
    (lambda: visualize.convolution(X, W).strip("a"), ValueError, "frames must be an int of at least 1, got 'a'"),
    (lambda: visualize.convolution(X, W).strip([9]), ValueError, "frames must be from 0 to 8, got 9"),
    (lambda: visualize.convolution(X, W).strip([]), ValueError, "a strip has from 1 to 32 frames, got 0"),
    (lambda: visualize.convolution(torch.ones(9, 9), W).strip(99), ValueError, "from 1 to 32 frames, got 64"),
    (lambda: visualize.convolution(X, W).formula(-1), ValueError, "frames must be from 0 to 8, got -1"),
    (lambda: visualize.convolution(X, W).html(seconds=0), ValueError, "seconds must be from 0.02 to 600, got 0"),
    (lambda: visualize.convolution(X, W).html(seconds=float("nan")), ValueError, "seconds must be from 0.02 to 600"),
    (lambda: visualize.convolution(X, W).html(seconds="a"), TypeError, "seconds must be a number, got 'a'"),
    (lambda: visualize.convolution(X, W).save("nowhere/a.gif"), FileNotFoundError, "there is no folder nowhere"),
])  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_every_mode_of_autograd_and_every_dtype():
    g = torch.tensor([[2.0, 1, 0], [-1, 3, 1], [0, 0, 1]])
    expected = visualize.convolution(X, W, of="input_grad", g=g).result
    with torch.no_grad():
        assert torch.equal(visualize.convolution(X.clone().requires_grad_(), W, of="input_grad", g=g).result, expected)
    with torch.inference_mode():
        assert torch.equal(visualize.convolution(X.clone(), W.clone(), of="input_grad", g=g.clone()).result, expected)
    assert torch.equal(visualize.convolution(X.int().T.T, W.half(), of="input_grad", g=g.long()).result, expected)


def test_a_row_counts_one_way():
    row = visualize.convolution(torch.tensor([0.0, 1, 2]), torch.tensor([1.0, 3]))
    assert row.formula(1) == "[1] = 1·1 + 3·2 = 7"
    assert visualize.convolution(X, W).formula(1).startswith("[0, 1] = ")
    padded = visualize.convolution(torch.tensor([0.0, 1, 2]), torch.tensor([1.0, 3]), padding=1)
    assert padded.canvas.tolist() == [[0, 0, 1, 2, 0]] and padded.result.tolist() == [[0, 3, 7, 2]]


def test_a_long_way_is_shown_in_part(monkeypatch):
    """As many frames as can be drawn, from the first to the last."""
    sliding = visualize.convolution(torch.ones(9, 8), torch.ones(1, 1))
    assert sliding._spread(5) == [0, 18, 36, 53, 71] and visualize.convolution(X, W)._spread(99) == list(range(9))
    monkeypatch.setattr(sliding_module, "MOST_MOVING", 3)
    page = sliding.html(bar=False)
    assert "frames[2]" in page and "frames[3]" not in page


def test_a_file_stays_where_drawing_ends_early(tmp_path, monkeypatch):
    """Both endings, by an interruption in the midst of the frames."""
    sliding = visualize.convolution(X, W)
    for name in ("a.gif", "a.HTML"):
        path = tmp_path / name
        assert sliding.save(path) == path
        before = path.read_bytes()
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            shown = []

            def interrupted(scene, frame, shown=shown, show=sliding_module._Scene.show):
                shown.append(frame)
                if len(shown) == 5:
                    raise KeyboardInterrupt
                show(scene, frame)

            patched.setattr(sliding_module._Scene, "show", interrupted)
            sliding.save(path)
        assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
        path.unlink()
