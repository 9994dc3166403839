"""The sweep: what it says of a choice, and the sweeps that the repository keeps."""

import pytest

import conv_ext
import emulated
from bench import cases, shapes, sweep, sweep_problems
from bench.__main__ import main


def row(chosen: str = "direct", disturbed: int = 0, **times: float) -> dict:
    return {"layout": "nchw", "dtype": "float32", "precision": "ieee", "layer": "s/a", "n": "1", "kind": "1x1",
            "pass": "forward", "chosen": chosen, "disturbed": str(disturbed), "torch_ms": "0.1",
            **{name: str(ms) for name, ms in times.items()}}  # fmt: skip


def test_the_loss_is_that_of_the_chosen_against_the_fastest_of_ours():
    assert sweep.loss(row(direct=1.2, panels=1.0, broadcast=3.0)) == (1.2, "panels")
    assert sweep.loss(row(direct=1.0, panels="")) == (1.0, "direct")


@pytest.mark.parametrize(
    ("others", "good"),
    [
        ([1.0], True),
        ([1.24, *[1.0] * 29], True),
        ([1.26, *[1.0] * 29], False),  # one loses too much
        ([1.2, 1.2, *[1.0] * 28], False),  # too many lose more than a tenth
        ([1.09] * 10, False),  # the mean
    ],
)
def test_a_choice_is_good_by_its_mean_its_usual_and_its_largest_loss(others, good):
    rows = [row(direct=loss, panels=1.0) for loss in others]
    assert sweep.judged(rows)["good"] is good


def test_disturbed_rows_and_the_reference_do_not_count():
    rows = [row(direct=9.0, panels=1.0, disturbed=1), row("reference", direct=1.0), row(direct=1.0)]
    assert sweep.judged(rows) == {"cases": 1, "mean": 1.0, "usual": 1.0, "worst": 1.0, "good": True}
    assert sweep.judged(rows[:2])["good"] is None
    assert "NOT as it should be" not in sweep.text({"isa": "avx2"}, rows)
    assert "Nothing can be said of the choice" in sweep.text({"isa": "avx2"}, rows[:2])


@pytest.mark.parametrize(
    ("first", "times"),
    [
        (row(direct=1.2, panels=1.0), 2),
        (row(direct=1.09, panels=1.0), 1),
        (row(direct=1.2, panels=1.0, disturbed=1), 1),
        (row("reference", direct=1.0), 1),
    ],
)
def test_what_seems_to_lose_much_is_measured_again_and_longer(monkeypatch, first, times):
    asked, rows = [], iter([first, row(direct=1.0, panels=1.1)])
    monkeypatch.setattr(sweep, "measure", lambda case, seconds: asked.append(seconds) or next(rows))
    found = sweep.measure_twice("a case", 0.1)
    assert asked == [0.1, sweep.LONGER * 0.1][:times]
    assert found == (first if times == 1 else row(direct=1.0, panels=1.1))


def test_precisions_are_classes_of_their_own():
    rows = [row(direct=1.0), row(direct=3.0, panels=1.0) | {"precision": "tf32"}]
    said = sweep.text({"isa": "avx2"}, rows)
    assert "nchw float32 ieee 1x1 forward" in said and "s/a n=1 forward float32 tf32 nchw" in said


def test_a_sweep_measures_every_algorithm_that_can_and_reads_its_file_again(tmp_path, capsys):
    path = tmp_path / "sweep.csv"
    main_arguments = ["sweep", "--only", "lenet5/c3", "--batch", "1", "--seconds", "0.001", "--pass", "forward"]
    assert run(main_arguments + ["--out", str(path)]) in (0, 1)  # who is fastest is nothing for a test
    head, rows = sweep.read(path)
    assert head["kernels"] == sweep.kernels_digest() and len(rows) == 1
    timed = {name for name, ms in rows[0].items() if name not in sweep.FIXED and ms}
    assert {"torch_ms", "direct", "panels", "broadcast"} <= timed and rows[0]["chosen"] in timed
    assert not rows[0]["depthwise"] and "1 of 1 cases" in capsys.readouterr().out
    run(["sweep", "--judge", str(path)])
    assert "5x5 stride 1 forward" in capsys.readouterr().out


def test_random_problems_are_swept_without_torch_s_times(tmp_path, capsys):
    path = tmp_path / "sweep.csv"
    arguments = [
        "sweep",
        "--random",
        "2",
        "--seed",
        "5",
        "--kinds",
        "groups",
        "--seconds",
        "0.001",
        "--pass",
        "input_grad",
        "--dtype",
        "float32",
        "complex64",
    ]
    assert run([*arguments, "--out", str(path)]) in (0, 1)
    head, rows = sweep.read(path)
    assert head["random"] == "2, seed 5, kinds groups" and "4 of 4 cases" in capsys.readouterr().out
    assert [row["dtype"] for row in rows] == ["float32", "float32", "complex64", "complex64"]
    drawn = {shape.full_name: shape for shape in sweep_problems.draw(2, 5, "groups")}
    for row in rows:
        assert row["torch_ms"] == "" and float(row["direct"]) > 0 and sweep.loss(row)[0] >= 1
        assert sweep_problems.shape_of(row["layer"], int(row["n"])) == drawn[row["layer"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--random", "2", "--only", "vgg16/*"], "--random draws its own problems: leave out"),
        (["--random", "2", "--suite", "vgg16"], "--random draws its own problems: leave out"),
        (["--random", "2", "--batch", "1"], "--random draws its own problems: leave out"),
        (["--seed", "2"], "give --random COUNT"),
        (["--kinds", "groups"], "give --random COUNT"),
        (["--random", "0"], "must be positive, got 0"),
        (["--random", "2", "--kinds", "none"], "invalid choice: 'none'"),
    ],
)
def test_wrong_options_of_random_problems_are_told(capsys, arguments, message):
    with pytest.raises(SystemExit):
        run(["sweep", *arguments])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("kinds", sweep_problems.KINDS)
def test_random_problems_are_drawn_again_and_read_by_their_names(kinds):
    drawn = sweep_problems.draw(150, 3, kinds)
    assert drawn == sweep_problems.draw(150, 3, kinds) != sweep_problems.draw(150, 4, kinds)
    assert len({shape.name for shape in drawn}) == 150
    for shape in drawn:
        assert sweep_problems.shape_of(shape.full_name, shape.n) == shape
        assert shape.p > 0 and shape.q > 0 and shape.c % shape.groups == shape.k % shape.groups == 0
        assert sweep_problems.LEAST_FLOPS <= shape.flops <= sweep_problems.MOST_FLOPS
    grouped = sum(shape.groups > 1 for shape in drawn)
    assert grouped > 120 if kinds == "groups" else 15 < grouped < 75
    seen = {(shape.kind, shape.stride, shape.dilation) for shape in drawn}
    assert len(seen) > 8 and any(shape.r != shape.s for shape in drawn)


def test_a_layer_is_read_with_the_images_of_its_row():
    layer = shapes.load(["vgg16"], ["vgg16/conv3_1"])[0]
    found = sweep_problems.shape_of("vgg16/conv3_1", 7)
    assert found.n == 7 != layer.n and (found.c, found.h, found.k) == (layer.c, layer.h, layer.k)


@pytest.mark.parametrize("name", ["vgg16/conv9", "none/conv1", "random/n1_c2", "random/", "", "random/n1_c2_h3 "])
def test_a_layer_that_is_none_is_told(name):
    with pytest.raises(SystemExit, match="a layer must be one of bench/shapes, or random/ and a problem such as"):
        sweep_problems.shape_of(name, 1)


@pytest.mark.parametrize("layout", shapes.LAYOUTS)
@pytest.mark.parametrize("pass_name", shapes.PASSES)
def test_complex_numbers_are_judged_part_by_part(pass_name, layout):
    shape = shapes.conv("small", c=6, h=7, w=9, k=4, r=3, s=2, stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2)
    case = cases.Case(shape, pass_name, "complex64", layout, "auto")
    o, judged = cases.operands(case), cases.judge(case)
    assert o.x.imag.abs().min() > 0
    result = cases.ours(case, o)()
    assert judged(result).right and judged(cases.theirs(case, o)()).right
    for damaged in (result.conj().resolve_conj(), result * (1 + 2e-5), result.real + 0j):
        assert not judged(damaged).right


def run(arguments: list[str]) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["bench", *arguments])
        return main()


HEAD = "# kernels=1\n" + ",".join([*sweep.FIXED, sweep.TORCH, "direct", "panels"]) + "\n"
ROW = "nchw,float32,ieee,s/a,1,1x1,forward,direct,0,0.1,1.0,\n"


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"\xff\xfe",
        "a,b\n1,2\n",
        "# kernels=1\nlayout,chosen\nnchw,direct\n",
        HEAD,
        HEAD + ROW.rstrip(),
        HEAD + "nchw,float32,ieee\n" + ROW,
        HEAD + ROW.replace(",\n", ",,5\n"),
        HEAD + ROW.replace(",0,0.1", ",,0.1"),
        HEAD + ROW.replace("1.0", "nan"),
        HEAD + ROW.replace("1.0", "fast"),
        HEAD + ROW.replace("1.0,", ",2.0"),
    ],
)
def test_what_is_no_sweep_is_told(tmp_path, content):
    path = tmp_path / "other.csv"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SystemExit, match="must be a CSV file that `python -m bench sweep` has written"):
        sweep.read(path)


def test_a_whole_file_is_read(tmp_path):
    left_to_the_reference = ROW.replace("direct,0,0.1,1.0", "reference,0,0.1,")
    (tmp_path / "sweep.csv").write_text(HEAD + ROW + left_to_the_reference)
    assert sweep.judged(sweep.read(tmp_path / "sweep.csv")[1])["good"]


def test_a_file_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(SystemExit, match="--out must be a file that can be written, got .*: Is a directory"):
        run(["sweep", "--only", "lenet5/c3", "--out", str(tmp_path)])


def test_the_digest_follows_from_plans_and_kernels(tmp_path):
    for folder in ("common", "cpu/direct", "cuda"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "cpu/direct/plan.cpp").write_text("1")
    before = sweep.kernels_digest(tmp_path)
    (tmp_path / "cuda/plan.cpp").write_text("1")
    assert sweep.kernels_digest(tmp_path) == before
    (tmp_path / "cpu/direct/plan.cpp").write_text("2")
    changed = sweep.kernels_digest(tmp_path)
    assert changed != before
    (tmp_path / sweep.COSTS).write_text("1")  # which says what is chosen, not how long it takes
    assert sweep.kernels_digest(tmp_path) == changed


KEPT = sorted(sweep.KEPT.glob("*.csv"))


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_the_choice_is_good_in_every_sweep_of_these_kernels(path):
    head, rows = sweep.read(path)
    assert path.stat().st_size <= 200_000
    if head["kernels"] != sweep.kernels_digest():
        pytest.skip("measured with other kernels than today's")
    isa, here = head["isa"], conv_ext.build_info()["isas_available"]
    if isa not in here:
        if isa != "amx" or not emulated.possible(here):
            pytest.skip(f"the plans of {isa} cannot be asked here")
        emulated.build()
        isa = emulated.NAME
    rows = sweep.chosen_today(head, rows, isa)
    assert sweep.judged(rows)["good"], sweep.text(head, rows)


def test_a_sweep_is_judged_by_todays_choice_where_its_kernels_are_todays(tmp_path, capsys):
    layer = "nchw,float32,ieee,vgg16/conv3_1,2,3x3 stride 1,forward,{},0,0.1,{},{}\n"
    head = HEAD.replace("kernels=1", f"kernels={sweep.kernels_digest()}\n# isa=baseline")
    path = tmp_path / "sweep.csv"
    path.write_text(head.replace("direct,panels", "direct,winograd") + layer.format("direct", 1.0, 9.0))
    assert run(["sweep", "--judge", str(path)]) == 0
    head, rows = sweep.read(path)
    (found,) = sweep.chosen_today(head, rows)
    assert found == rows[0] | {"chosen": "winograd"} and not sweep.judged([found])["good"]
    assert run(["sweep", "--judge", str(path), "--today"]) == 1
    with pytest.raises(SystemExit, match="are not those of the sweep"):
        sweep.chosen_today(head | {"kernels": "1"}, rows)
    with pytest.raises(SystemExit):
        run(["sweep", "--today"])
    assert "give --judge FILE.csv" in capsys.readouterr().err
