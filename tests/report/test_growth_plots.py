"""What pictures of growth are drawn from."""

import json
from pathlib import Path

import pytest

from apollo_cli.report import growth_plots as module
from apollo_cli.report.comparison import Question, compare, whole_model
from apollo_cli.report.groups import families
from apollo_cli.report.runs import read_runs
from apollo_cli.report.style import looks, looks_of
from tests.helpers.made_runs import write_run

WIDER = {"growth/from": 4, "growth/to": 4, "growth/width_from": 0.5, "growth/width_to": 1.0}


def test_a_growth_in_width_has_two_sides(tmp_path: Path) -> None:
    """The layers are as many before and after."""
    folder = write_run(tmp_path / "run", [], schedule__layers=[4, 4], schedule__widths=[0.5, 1])
    columns = {"step": 5, "flops": 1, "train_seconds": 1.0, "layers": 4}
    sides = ((0.5, 3.0), (1.0, 3.5))
    rows = [columns | WIDER | {"width": width, "eval/loss": loss} for width, loss in sides]
    rows += [columns | {"step": step, "width": width, "train/loss": 4.0} for step, width in ((4, 0.5), (6, 1.0))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ((run,), _) = read_runs([str(folder)])
    growth = ((4, 0.5), (4, 1.0))
    assert {module._growth(row) for row in run.evaluations} == {growth}
    assert module._losses_beside(run, growth) == (3.0, 3.5)
    assert module._values_around(run, growth, "train/loss") == ([(-1, 4.0)], [(1, 4.0)])
    assert module._growth_title(growth) == "0.5 to 1 of the width"
    assert not run.is_scratch
    assert [point.loss for point in whole_model(run)] == [3.5]


def test_a_growth_in_depth_is_named_by_its_layers() -> None:
    row = {"layers": 3, "growth/from": 3, "growth/to": 6}
    growth = module._growth(row)
    assert growth == ((3, 1.0), (6, 1.0))
    assert module._growth_title(growth) == "3 to 6 layers"
    assert module._growth_title(((3, 0.5), (6, 1.0))) == "3 to 6 layers, 0.5 to 1 of the width"


def test_seeds_are_aligned_at_their_own_growth(tmp_path: Path) -> None:
    """Rows each 10 steps, growths at step 24 and 28: the rows before lie 4 and 8 steps before, 6 on average."""
    for seed, at in enumerate((24, 28)):
        folder = write_run(tmp_path / str(seed), [], seed=seed)
        columns = {"flops": 1, "train_seconds": 1.0}
        grown = {"step": at, "growth/from": 2, "growth/to": 4, "eval/loss": 3.0}
        rows = [grown | columns | {"layers": layers} for layers in (2, 4)]
        for step in range(10, 60, 10):
            rows.append({"step": step, "layers": 2 if step < at else 4, "train/loss": step + seed} | columns)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (method,) = compare(families(read_runs([str(tmp_path)])[0])[0], Question())[0].methods
    _, grid = module._panels([4.0], 1)
    module._draw_column(grid[0, 0], method, ((2, 1.0), (4, 1.0)), looks([method.label])[method.label], "train/loss")
    before, after = (list(zip(*line.get_data(), strict=True)) for line in grid[0, 0].lines)
    assert before == [(-16.0, 10.5), (-6.0, 20.5)]
    assert after == [(4.0, 30.5), (14.0, 40.5), (24.0, 50.5)]


def test_the_probabilities_are_those_of_one_depth_where_models_differ_in_it(tmp_path: Path) -> None:
    rows = [(9, 90, 9.0, 3.0)]
    write_run(tmp_path / "a", rows, name="a", model__layers=4, schedule__layers=[2, 4])
    write_run(tmp_path / "b", rows, name="b", model__layers=12, schedule__layers=[6, 12])
    (comparison,) = compare(families(read_runs([str(tmp_path)])[0])[0], Question())
    figures = {picture.name: picture.figure for picture in module.draw_growth(comparison)}
    assert [axes.get_title() for axes in figures["lvps"].axes] == ["N = 2 of L = 4"]


def test_methods_that_differ_in_the_strength_alone_are_one_line(tmp_path: Path) -> None:
    for k in (4, 0, 2.5):
        for seed in (0, 1):
            write_run(tmp_path / f"{k}-{seed}", [(9, 90, 9.0, 3.0 + k)], name="a", seed=seed, sampler__k=k)
    write_run(tmp_path / "stack", [(9, 90, 9.0, 2.0)], name="b", expander__kind="stack")
    write_run(tmp_path / "begun", [], [(0, 0, 0.0, 9.0)], name="a", sampler__k=1)
    write_run(tmp_path / "nan", [(9, 90, 9.0, 3.0)], name="a", sampler__k=float("nan"))
    (comparison,) = compare(families(read_runs([str(tmp_path)])[0])[0], Question())
    (line,) = module._by_strength(comparison.methods)
    assert [(k, method.final.mean) for k, method in line.items() if method.final] == [
        (0, 3.0),
        (2.5, 5.5),
        (4, 7.0),
    ]
    (axes,) = module._over_strengths(comparison, [line], looks_of(comparison)).axes
    assert axes.lines[-1].get_xydata().tolist() == [[0, 3.0], [2.5, 5.5], [4, 7.0]]  # type: ignore[union-attr]


def test_a_jump_that_is_hardly_one_does_not_fill_its_panel(tmp_path: Path) -> None:
    """The axis has two hundredths of a nat at least, and room for the number."""
    folder = write_run(tmp_path / "run", [], schedule__layers=[2, 4])
    columns = {"step": 24, "flops": 1, "train_seconds": 1.0, "growth/from": 2, "growth/to": 4}
    rows = [columns | {"layers": layers, "eval/loss": loss} for layers, loss in ((2, 3.0), (4, 3.0 + 1e-7))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (method,) = compare(families(read_runs([str(tmp_path)])[0])[0], Question())[0].methods
    figure = module._around_growths([method], [((2, 1.0), (4, 1.0))], looks([method.label]))
    assert figure.axes[0].get_xlim() == pytest.approx((2.99, 3.016))
