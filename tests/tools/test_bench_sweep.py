"""The sweep: what it says of a choice, and the sweeps that the repository keeps."""

import pytest

from bench import sweep
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
    assert sweep.kernels_digest(tmp_path) != before


KEPT = sorted(sweep.KEPT.glob("*.csv"))


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_the_choice_is_good_in_every_sweep_of_these_kernels(path):
    head, rows = sweep.read(path)
    assert path.stat().st_size <= 200_000
    if head["kernels"] != sweep.kernels_digest():
        pytest.skip("measured with other kernels than today's")
    assert sweep.judged(rows)["good"], sweep.text(head, rows)
