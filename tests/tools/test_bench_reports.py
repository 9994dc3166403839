"""What the bench makes of its rows: means, aims, comparisons, reports, the README's table, figures."""

import itertools
import json
from pathlib import Path

import pytest

from bench import aims, compare, environment, figures, keep, peaks, readme, report, shapes
from test_bench import SMALL, result, row


def test_the_table_gives_geometric_means_by_pass_and_kind():
    rows = [{"kind": kind, "pass": pass_name, "ratio": ratio} for kind, pass_name, ratio in
            [("a", "forward", 2.0), ("a", "forward", 8.0), ("b", "weight_grad", 0.25)]]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in report.means(rows, "kind").splitlines()]
    assert lines[0] == ["class", "forward", "input_grad", "weight_grad", "all"]
    assert lines[2] == ["a", "4.00 (2)", "", "", "4.00 (2)"]
    assert lines[3] == ["b", "", "", "0.25 (1)", "0.25 (1)"]
    assert lines[4] == ["all", "4.00 (2)", "", "0.25 (1)", "1.59 (3)"]


def test_ratios_to_cudnn_are_told_beside_the_aims():
    def on_gpu(kind, ratio, **changes):
        return row(kind, ratio, device="cuda", **{"n": 64, **changes})

    text = aims.text([
        on_gpu("1x1", 1.5), on_gpu("1x1", 0.5, **{"pass": "weight_grad"}),
        on_gpu("depthwise", 5.0, **{"pass": "weight_grad"}),
        on_gpu("1x1", 0.6, dtype="bfloat16"), on_gpu("strided", 2.0, n=8), {**on_gpu("1x1", 1.0), "right": False},
        on_gpu("1x1", 3.0, algorithm="three_tf32"),
    ], None)
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    lines = [[cell.strip() for cell in row] for row in rows]
    found = {line[0]: line[1:5] for line in lines}
    assert found["up to 8 images"] == ["1", "2.00", "1.0 reached", "1.5 reached"]
    assert found["depthwise, gradients"] == ["1", "5.00", "1.5 reached", "3.0 reached"]
    assert found["float32 ieee, other dense layers, gradients"] == ["1", "0.50", "1.7 MISSED", "2.2 MISSED"]
    assert found["16 bits, 1x1"] == ["1", "0.60", "0.9 MISSED", ""]
    assert "Algorithm three_tf32:" in text and "1 cases WRONG or failed" in text and "none is set" not in text


def test_every_class_of_layers_has_an_aim_on_a_gpu():
    for kind, pass_name, precision in itertools.product(shapes.CLASSES, shapes.PASSES, ("ieee", "tf32")):
        for dtype in ("float32", "float64", "bfloat16"):
            described = row(kind, 1.0, n=64, dtype=dtype, precision=precision if dtype == "float32" else "ieee")
            assert any(aim.fits({**described, "pass": pass_name}) for aim in aims.CUDA)
    assert all(aim.first < (aim.ambitious or 9) for aim in aims.CUDA)


AIMED = [  # of the project: dtype, precision, kind, pass, images, the least mean ratio
    ("float32", "ieee", "1x1", "forward", 64, 1.7),
    ("float32", "ieee", "strided", "weight_grad", 64, 1.7),
    ("float32", "ieee", "3x3 stride 1", "forward", 64, 1.4),
    ("float32", "ieee", "3x3 stride 1", "input_grad", 64, 1.4),
    ("float32", "ieee", "3x3 stride 1", "weight_grad", 64, 1.4),
    ("float32", "tf32", "3x3 stride 1", "forward", 64, 0.9),
    ("bfloat16", "ieee", "3x3 stride 1", "weight_grad", 128, 0.8),
    ("bfloat16", "ieee", "1x1", "input_grad", 128, 0.9),
    ("float32", "ieee", "depthwise", "forward", 64, 3.0),
    ("bfloat16", "ieee", "grouped", "weight_grad", 128, 1.5),
    ("float64", "ieee", "1x1", "forward", 64, 1.2),
    ("bfloat16", "ieee", "3x3 stride 1", "forward", 8, 1.0),
]


@pytest.mark.parametrize("dtype, precision, kind, pass_name, n, least", AIMED)
def test_the_aims_on_a_gpu(dtype, precision, kind, pass_name, n, least):
    described = {**row(kind, 1.0, n=n, dtype=dtype, precision=precision), "pass": pass_name}
    assert next(aim for aim in aims.CUDA if aim.fits(described)).first == least


def test_aims_are_judged_over_all_over_classes_and_one_by_one():
    aim = aims.Aim(1.5, 1.0, 0.8)
    words = [line.split(":")[0] for line in aims.judged([row("1x1", 2.0), row("strided", 1.2)], aim)]
    assert words == ["reached"] * 3
    lines = aims.judged([row("1x1", 4.0), row("strided", 0.7), row("strided", 1.2)], aim)
    assert [line.split(":")[0] for line in lines] == ["MISSED", "MISSED", "MISSED"]
    assert "1.50" in lines[0] and "below it: strided" in lines[1] and "s/strided n=1 forward" in lines[2]
    text = aims.text([row("1x1", 2.0), row("1x1", 1.0, dtype="float16"), {"right": False}], None)
    assert "float32, ieee, nchw:\n  reached" in text and "float16, ieee, nchw: none is set" in text
    assert "aim 0.8" in aims.text([row("1x1", 2.0)], "avx2")
    busy = aims.judged([row("1x1", 4.0, disturbed=True), row("strided", 0.7, disturbed=True)], aim)
    assert all(line.startswith("not judged (disturbed): ") for line in busy)
    assert aims.judged([row("1x1", 4.0), row("strided", 0.7, disturbed=True)], aim)[0].startswith("reached")
    assert "aim 1.9" in aims.text([row("1x1", 2.0)], None) and "aim 2.2" in aims.text([row("1x1", 2.0)], None, "amx")


def test_a_comparison_tells_what_stands_out_of_the_noise():
    old = result([row("a", 1.0), row("b", 1.0), row("c", 1.0, spread=0.3), row("gone", 1.0)])
    new = result([row("a", 2.0), row("b", 0.97), row("c", 0.8), row("new", 1.0)], threads=2)
    text = compare.text(old, new)
    assert "3 cases in common (1 only here, 1 only there" in text
    assert "Slower beyond the noise: none" in text and "Faster beyond the noise: 1" in text
    assert f"{(2.0 * 0.97 * 0.8) ** (1 / 3):.2f} (above 1: faster now)" in text
    assert "NOT ALIKE: threads was 1, is 2" in text
    with pytest.raises(SystemExit, match="only results of .* got one of call"):
        compare.text({"command": "call"}, new)


def test_a_report_of_a_run_has_all_its_parts():
    rows = [row("1x1", 2.0), row("strided", 0.5, batch="1"), row("1x1", 1.0, precision="tf32", torch_precision="tf32"),
            {**row("1x1", 1.0), "right": False, "ratio": 1.0}]
    text = report.text(result(rows))
    for part in ("float32 100 GFLOP/s", "copy 20.0 GB/s", "float32, ieee, nchw, batch train", "batch 1",
                 "read back: tf32",
                 "By suite", "Mean over 1 suite (", "WRONG: s/1x1 forward", "2%", "Aims for float32, tf32"):
        assert part in text, part
    assert "Not computed by winograd: 1 cases (it is too odd)" in report.text(result(
        [{**SMALL.describe(), "dtype": "float32", "precision": "ieee", "layout": "nchw", "algorithm": "winograd",
          "right": True, "declined": "it is too odd"}]))


def test_a_result_lies_where_the_user_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given, written in (("run1", "run1.json"), (tmp_path / "a" / "run2", tmp_path / "a" / "run2.json"),
                           ("../run3.txt", "../run3.txt")):
        assert environment.save(result([]), Path(given)) == str(written) and Path(written).is_file()


def test_the_ceiling_is_that_of_the_arithmetic_that_may_be_used():
    ceilings = {"float32": 1.0, "float64": 0.5, "bfloat16": 2.0, "copy": 9.0}
    assert peaks.peak_of({"dtype": "float32", "precision": "tf32"}, ceilings) == 1.0
    assert peaks.peak_of({"dtype": "float32", "precision": "bf16"}, ceilings) == 2.0
    assert peaks.peak_of({"dtype": "float64"}, ceilings) == 0.5
    assert peaks.peak_of({"dtype": "bfloat16"}, {"float32": 1.0}) == 1.0
    assert peaks.peak_of({"dtype": "float32"}, {}) is None
    assert not peaks.has_bfloat16("avx2")


def test_the_readme_has_the_markers_and_its_table_is_exchanged():
    text = readme.README.read_text(encoding="utf-8")
    new = readme.replaced(text, "HERE")
    assert new.split(readme.BEGIN)[0] == text.split(readme.BEGIN)[0] and f"{readme.BEGIN}\nHERE\n{readme.END}" in new
    with pytest.raises(SystemExit, match="once each"):
        readme.replaced("no marker", "HERE")
    section = readme.section([result([row("1x1", 2.0), row("first layer", 8.0)]),
                              result([row("1x1", 3.0, precision="tf32")], cap="avx2", warm_allocator=False)])
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if "|" in line]
    assert lines[0] == ["class (cases)", "float32, NCHW", "float32 tf32, NCHW, cold, avx2 both"]
    first, pointwise = ["first layer", "8.00 (1)", ""], ["1x1", "2.00 (1)", "3.00 (1)"]
    assert lines[2:] == [first, pointwise, ["all", "4.00 (2)", "3.00 (1)"]]


def test_what_is_kept_of_a_result_says_the_same(tmp_path):
    declined = {name: value for name, value in row("1x1", 1.0).items() if name != "ratio"} | {"declined": "too odd"}
    rows = [row("1x1", 2.0 / 3, theirs_ms=1.5), row("strided", 0.5, disturbed=True, others=1.25), declined,
            {**row("1x1", 1.0), "right": False}]
    for each in rows:  # what is left out follows from these
        each |= {f"{side}_gflops": each["flops"] / each[f"{side}_ms"] / 1e6 for side in ("ours", "theirs")}
    of_run = result(rows)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(of_run))
    assert keep.main([str(path), "--folder", str(tmp_path)]) == 0
    kept = environment.load(tmp_path / "a.table.json")
    raw = environment.load(path)
    assert report.text(kept) == report.text(raw) and readme.section([kept]) == readme.section([raw])
    assert compare.text(kept, raw).replace("1.00", "") == compare.text(raw, raw).replace("1.00", "")
    assert keep.main([str(tmp_path / "a.table.json"), "--folder", str(tmp_path)]) == 0  # once more changes nothing
    assert environment.load(tmp_path / "a.table.json") == kept
    kept["cases"][0]["ratio"] = 2.0
    assert report.text(kept) != report.text(raw)


def test_the_readme_says_what_the_kept_results_say():
    text = readme.README.read_text(encoding="utf-8")
    results = [environment.load(path) for path in readme.kept()]
    assert {result["command"] for result in results} == {"run", "network"}
    assert readme.replaced(text, readme.section(results)) == text
    results[0]["cases"][0]["ratio"] *= 100
    assert readme.replaced(text, readme.section(results)) != text


def test_figures_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    figures.draw([result([row("1x1", 2.0), row("strided", 0.5, precision="tf32")])], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"ratios.png", "roofline.png"}
