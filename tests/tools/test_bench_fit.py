"""The fit of the plans' cycles: known ones are found, the table is read and written, what is wrong is told."""

from pathlib import Path

import numpy as np
import pytest

import conv_ext
from bench import cost_table, counts, fit, shapes, sweep, sweep_problems
from bench.__main__ import main

NESTS = cost_table.nests_of(cost_table.COSTS.read_text())
IN_FORCE = cost_table.read(cost_table.TABLE.read_text(), NESTS)
ISA = conv_ext._C.isa()
NAMES = [name for name in conv_ext.settings.ALGORITHMS["cpu"] if name not in ("auto", "reference")]


# ---- The table


def test_the_table_in_force_is_written_as_it_stands():
    assert len(NESTS) == IN_FORCE.cycles.shape[2] and not np.isnan(IN_FORCE.cycles).any()
    assert cost_table.text(IN_FORCE) == cost_table.TABLE.read_text()


def test_a_table_with_other_loops_for_one_type_is_refused():
    damaged = cost_table.TABLE.read_text().replace(f"// {NESTS[0]}\n", "// Other\n", 1)
    with pytest.raises(SystemExit, match="must have the same loops for each kind of processor and type"):
        cost_table.read(damaged, NESTS)


@pytest.mark.parametrize("keep", [False, True])
def test_rows_without_measurements_have_those_of_the_nearest_or_those_in_force(keep):
    measured = cost_table.Table.unknown(NESTS)
    measured.cycles[1, 0, 3, 0], measured.cycles[1, 1, 3, 1] = 1.0, 2.0
    whole, taken = cost_table.filled(measured, IN_FORCE, keep)
    assert (whole.cycles[1, 0, 3, 0] == 1).all() and (1, 0, 3, 0) not in taken
    assert (whole.cycles[0, 2, 5, 1] == IN_FORCE.cycles[0, 2, 5, 1]).all() and taken[0, 2, 5, 1] is None
    if keep:
        assert (whole.cycles[1, 0, 3, 1] == IN_FORCE.cycles[1, 0, 3, 1]).all()
    else:  # the other layout before other vectors, and these before another type
        assert taken[1, 0, 3, 1] == taken[0, 0, 3, 1] == (1, 0, 3, 0) and taken[0, 1, 3, 0] == (1, 1, 3, 1)


def test_loops_that_nobody_knows_cycles_of_are_told():
    nests = [*NESTS, "New"]
    in_force = cost_table.read(cost_table.TABLE.read_text(), nests)
    assert np.isnan(in_force.cycles[:, :, -1]).all() and not np.isnan(in_force.cycles[:, :, :-1]).any()
    with pytest.raises(SystemExit, match="the loops New have neither measurements"):
        cost_table.filled(cost_table.Table.unknown(nests), in_force, keep=True)


# ---- The fit


def rows_of(count: int, dtype: str = "float32", precision: str = "ieee") -> list[dict]:
    return [
        {"layout": layout, "dtype": dtype, "precision": precision, "layer": shape.full_name, "n": str(shape.n),
         "kind": shape.kind, "pass": pass_name, "chosen": "reference", "disturbed": "0", "isa": ISA, "file": "planted"}
        for shape in sweep_problems.draw(count, seed=7) for layout in shapes.LAYOUTS for pass_name in shapes.PASSES]


def planted(rows: list[dict], table: cost_table.Table) -> None:
    """Gives each row the times that the table says, and as its choice the fastest of those that are possible."""
    plans = [counts.of(row) for row in rows]
    for row, plan in zip(rows, plans):
        row.update({name: "1" for name in plan["works"] if name != "reference"})
    data, *_ = fit.data_of(rows, plans, NESTS)
    logarithms = fit.logarithms(data, table)
    for i, row in enumerate(data.rows):
        own = {name: np.exp(logarithms[i, j]) / fit.CLOCK * 1e3
               for j, name in enumerate(data.names) if data.fitted[i, j]}
        row.update(dict.fromkeys(NAMES, "") | {name: f"{ms:.6g}" for name, ms in own.items()})
        row["chosen"] = min(own, key=own.__getitem__)


@pytest.fixture(scope="module")
def other_cycles() -> cost_table.Table:
    """Cycles that are far from those in force."""
    change = np.exp(np.random.default_rng(1).normal(0, 1, IN_FORCE.cycles.shape))
    return cost_table.Table(NESTS, IN_FORCE.cycles * change)


@pytest.fixture(scope="module")
def planted_rows(other_cycles) -> list[dict]:
    found = rows_of(40)
    planted(found, other_cycles)
    return found


@pytest.fixture
def rows(planted_rows) -> list[dict]:
    return [dict(row) for row in planted_rows]


@pytest.fixture
def in_process(monkeypatch) -> None:
    """The plans are asked here, where that they are asked in a process of their own is nothing for the test."""
    monkeypatch.setattr(fit, "counted", lambda rows: [counts.of(row) for row in rows])


def fitted(rows: list[dict], steps: int = 300) -> tuple[fit.Data, cost_table.Table]:
    data, *_ = fit.data_of(rows, [counts.of(row) for row in rows], NESTS)
    return data, fit.fit(data, NESTS, np.ones(len(data.rows), bool), steps)


def test_estimates_are_those_of_the_plan():
    for dtype, precision in (("float32", "ieee"), ("float32", "bf16"), ("bfloat16", "ieee"), ("complex64", "ieee")):
        for row in rows_of(3, dtype, precision):
            plan = counts.of(row)
            row.update({name: "1" for name in plan["works"] if name != "reference"})
            data, *_ = fit.data_of([row], [plan], NESTS)
            estimates = np.exp(fit.logarithms(data, IN_FORCE))[0]
            images = 1 if row["pass"] == "weight_grad" else int(row["n"])
            shape = sweep_problems.shape_of(row["layer"], int(row["n"]))
            for name, cycles in planned(shape, row).items():
                place = data.names.index(name)
                if data.fitted[0, place]:
                    assert estimates[place] == pytest.approx(cycles * images, rel=1e-5), (row, name)


def planned(shape: shapes.Shape, row: dict) -> dict[str, float]:
    """Cycles of the algorithms that can compute it, by what `conv_ext.explain` says."""
    from bench import cases

    case = cases.Case(shape, row["pass"], row["dtype"], row["layout"], "auto", row["precision"])
    with conv_ext.precision(row["precision"]):
        found = cases.plan(case, cases.operands(case))
    return {name: cycles for name, _, can, cycles in found.candidates if can and cycles and name != "reference"}


def test_known_cycles_are_found(rows, other_cycles):
    data, table = fitted(rows)
    whole, _ = cost_table.filled(table, IN_FORCE, keep=False)
    before, after = fit.losses(data, IN_FORCE), fit.losses(data, whole)
    assert before.mean() > 1.2, "the planted times are far from those in force"
    assert after.mean() < 1.005 and after.max() < 1.15
    off = np.abs(fit.logarithms(data, whole) - fit.logarithms(data, other_cycles))[data.fitted]
    assert np.median(off) < 0.02
    again = fitted(rows)[1]
    assert np.array_equal(table.cycles, again.cycles, equal_nan=True), "the fit is the same at every run"


def test_a_wrong_time_is_found_and_spoils_the_loss(rows):
    def margin(row: dict) -> float:
        first, second, *_ = (*sorted(fit.times(row).values()), 0, 0)
        return second / first if row["pass"] == "forward" and row["layer"].endswith("_g1") else 0

    wrong = max(rows, key=margin)
    assert margin(wrong) > 1.5
    order = sorted(fit.times(wrong), key=fit.times(wrong).__getitem__)
    wrong[order[0]] = str(float(wrong[order[-1]]) * 3)
    data, table = fitted(rows)
    whole, _ = cost_table.filled(table, IN_FORCE, keep=False)
    losses = fit.losses(data, whole)
    assert data.rows[losses.argmax()] is wrong and losses.max() > 2.5
    said = fit.report(data, losses, None, 1, whole)
    assert f"{wrong['layer']} n={wrong['n']} forward" in said and f"{losses.max():.2f} |" in said


def test_problems_are_held_out_whole(rows):
    data, *_ = fit.data_of(rows, [counts.of(row) for row in rows], NESTS)
    parts = fit.folds_of(data, 3)
    assert set(parts) == {0, 1, 2}
    for layer in {row["layer"] for row in data.rows}:
        assert len({part for part, row in zip(parts, data.rows) if row["layer"] == layer}) == 1


# ---- The command


def run(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["bench", "fit", *arguments])
        return main()


def write(path: Path, rows: list[dict], **head: str) -> str:
    head = {"isa": ISA, "threads": "1", "kernels": "1"} | head
    lines = [f"# {name}={value}" for name, value in head.items() if value]
    columns = [*sweep.FIXED, sweep.TORCH, *NAMES]
    lines += [",".join(columns), *(",".join(str(row.get(name, "")) for name in columns) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_the_command_says_what_it_found_and_writes_the_table(tmp_path, monkeypatch, capsys, rows):
    table = tmp_path / "cost_table.h"
    table.write_text(cost_table.TABLE.read_text())
    monkeypatch.setattr(cost_table, "TABLE", table)
    file = write(tmp_path / "sweep.csv", rows)
    assert run(file, "--steps", "40", "--folds", "2") == 0
    said = capsys.readouterr().out
    assert table.read_text() == cost_table.text(IN_FORCE), "without --write nothing is written"
    assert f"{ISA} float32 ieee random nchw weight_grad" in said and "Where it loses most" in said
    assert "Loops that nothing was measured of: " in said and "held out |" in said and "Build again" not in said
    monkeypatch.setattr(fit, "counted", lambda rows: [counts.of(row) for row in rows])
    assert run(file, "--steps", "40", "--folds", "0", "--keep", "--write") == 0
    assert "Build again" in capsys.readouterr().out
    written = cost_table.read(table.read_text(), NESTS)
    assert cost_table.text(written) == table.read_text() != cost_table.text(IN_FORCE)
    assert (written.cycles[:, 2] == IN_FORCE.cycles[:, 2]).all(), "--keep: complex numbers were not measured"


def test_rows_that_say_nothing_are_named(tmp_path, capsys, rows, in_process):
    rows[0].update(dict.fromkeys(NAMES, "") | {"chosen": "reference"})
    two = [row for row in rows if row["pass"] == "weight_grad" and "direct" not in counts.of(row)["works"]]
    for row in two:
        row["direct"] = "100"
    assert run(write(tmp_path / "sweep.csv", rows), "--steps", "2", "--folds", "0") == 0
    said = capsys.readouterr().out
    assert "(the reference alone): 1." in said
    assert f"Times of direct that have no counts, so that no choice takes it: {len(two)}." in said


@pytest.mark.parametrize(
    ("head", "change", "message"),
    [
        ({"threads": "2"}, {}, "must be measured with --threads 1, .* was measured with 2"),
        ({"threads": ""}, {}, "was measured with an unknown number"),
        ({"isa": ""}, {}, "must name its instruction set"),
        ({}, {"disturbed": "1"}, "nothing to fit: other processes disturbed every row"),
        ({}, {"dtype": "int8"}, "a dtype must be one of float32, .*, got int8"),
        ({}, {"layer": "random/n8"}, "a layer must be one of bench/shapes, .*got random/n8"),
        ({}, {"layer": "vgg16/none"}, "got vgg16/none"),
        ({}, dict.fromkeys(NAMES, "") | {"chosen": "reference"}, "no algorithm that was timed has counts"),
    ],
)  # fmt: skip
def test_what_cannot_be_fitted_is_told(tmp_path, rows, in_process, head, change, message):
    file = write(tmp_path / "sweep.csv", [row | change for row in rows[:4]], **head)
    with pytest.raises(SystemExit, match=message):
        run(file, "--folds", "0", "--steps", "1")


def test_an_instruction_set_that_is_not_there_is_told(tmp_path, rows):
    file = write(tmp_path / "sweep.csv", rows[:4], isa="avx1024")
    with pytest.raises(SystemExit, match="the plans of avx1024 cannot be asked: .*CONV_EXT_ISA"):
        run(file)


def test_an_algorithm_that_is_not_there_is_told(tmp_path, rows, in_process):
    file = Path(write(tmp_path / "sweep.csv", rows[:4]))
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:3], lines[3] + ",magic", *(line + ",1.5" for line in lines[4:])]) + "\n")
    with pytest.raises(SystemExit, match="has times of magic, which is no algorithm of this build"):
        run(str(file), "--folds", "0")


def test_wrong_options_are_told(tmp_path, rows, capsys, in_process):
    file = write(tmp_path / "sweep.csv", rows[:6])
    for arguments, message in (((), "required: FILE.csv"), ((file, "--folds", "1"), "--folds must be 0, or 2 or more"),
                               ((file, "--steps", "0"), "must be positive")):
        with pytest.raises(SystemExit):
            run(*arguments)
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit, match="must be a CSV file that `python -m bench sweep` has written"):
        run(str(tmp_path / "none.csv"))
    with pytest.raises(SystemExit, match="too few problems to hold some out"):
        run(file, "--folds", "2")
