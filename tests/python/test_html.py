"""What a notebook shows: the lines and tables that are printed, as HTML."""

from html.parser import HTMLParser

import pytest
import torch
from torch import nn

import conv_ext
from conv_ext import models


class Reader(HTMLParser):
    """Rows of cells, and what stands outside of them; tags have to be closed in order."""

    def __init__(self, page):
        super().__init__()
        self.rows, self.texts, self.open = [], [], []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        if tag != "br":
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        else:
            self.texts.append(data)


def pages():
    torch.manual_seed(0)
    x, w, net = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3), models.lenet5().eval()
    odd = nn.Sequential()
    odd.add_module("<b> & co", nn.Conv2d(3, 4, 3))
    yield "summary", conv_ext.summary(net, (1, 32, 32))
    yield "odd names", conv_ext.summary(odd, (3, 8, 8))
    yield "explanation", conv_ext.explain(x, w, padding=1)
    yield "model", conv_ext.explain(net, torch.randn(1, 1, 32, 32))
    yield "fused", conv_ext.fuse(net).report
    yield "pass", conv_ext.explain(x, w).forward


PAGES = dict(pages())


@pytest.mark.parametrize("name", PAGES)
def test_a_page_says_what_is_printed(name):
    page = Reader(PAGES[name]._repr_html_())
    printed = str(PAGES[name])
    words = "".join(printed.split())
    said = [text for row in page.rows for text in row] + page.texts
    assert page.rows and page.texts
    for text in said:  # nothing is added
        assert "".join(text.split()) in words, text
    # And nothing is left out but the rules between rows.
    assert sorted(words.replace("-", "")) == sorted("".join("".join(said).split()).replace("-", ""))


def test_tables_have_a_cell_in_every_column():
    for name in ("summary", "model", "fused"):
        lengths = {len(row) for row in Reader(PAGES[name]._repr_html_()).rows}
        assert len(lengths) == 1 and lengths.pop() > 3


def test_figures_show_themselves():
    figure = conv_ext.visualize.filters(torch.randn(4, 3, 3, 3))
    assert figure._repr_png_().startswith(b"\x89PNG")
