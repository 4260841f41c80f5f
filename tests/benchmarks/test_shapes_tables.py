"""What joint and single runs have equal is what the tables say they have."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

CONDITIONS = {"heldout_tokens": 10, "model": "m", "batch_tokens": 8}
CUTS = [f"d{depth}-w{width}" for depth in range(5, 0, -1) for width in (1, 0.75, 0.5, 0.375, 0.25)]


def results(seeds: int = 2) -> dict:
    """Every row measured: joint loses 2 on each cut, a single run 1.6, seed 1 a tenth more."""
    from shapes_runs import ALONE, METHODS, ROWS, Run

    untuned = {
        "grid": dict.fromkeys(CUTS, 4.0),
        "finer": {"h9-w1": 3.0, "d5-g0.5": 3.5},
        **{
            axis: {
                method: {str(size): 3.0 for size in sizes}
                for kind, method in METHODS
                if kind == axis
            }
            for axis, sizes in (("depth", (5, 4, 3, 2, 1)), ("width", (1, 0.75, 0.5, 0.375, 0.25)))
        },
    }
    found = {}
    for name, row in ROWS.items():
        for seed in range(seeds):
            for shape in ALONE if row.alone else ("",):
                run = Run(name, seed, shape)
                loss = (1.6 if row.alone else 2.0) * (1 + 0.1 * seed)
                found[run.key] = {
                    "row": name, "seed": seed, "shape": shape, "steps": 100, "arithmetic": 2.0,
                    "bits_per_byte": {shape: loss} if shape else dict.fromkeys(CUTS, loss),
                    "finer": {"h9-w1": loss, "d5-g0.5": loss},
                }  # fmt: skip
    return {"conditions": CONDITIONS, "untuned": untuned, "runs": found}


def test_gaps_are_relative_and_paired_by_seed() -> None:
    from shapes_runs import ALONE, Run
    from shapes_tables import COMPARISONS, gaps_table

    rows = gaps_table(results())["rows"]
    assert len(rows) == len(COMPARISONS)
    for row in rows:
        assert row[3:5] == ["2", "+25.0 ± 0.0"]
    # A comparison that lacks a shape is not shown.
    missing = results()
    for seed in range(2):
        del missing["runs"][Run("single, 50 steps", seed, ALONE[0]).key]
    assert [row[2] for row in gaps_table(missing)["rows"]].count("single, 50 steps") == 0


def test_what_is_equal_is_equal() -> None:
    """The rows that comparisons name exist; visits are steps of the single run beside them."""
    from shapes_runs import LONG, ROWS
    from shapes_tables import COMPARISONS

    for equal, joint, single in COMPARISONS:
        assert not ROWS[joint].alone and ROWS[single].alone
        if equal.startswith("steps per shape"):
            assert ROWS[joint].visits == (ROWS[single].steps or 100) == int(equal.split()[-1])
        if equal.startswith("total compute"):
            assert ROWS[single].shares == joint
    assert ROWS[LONG].visits == 50


def test_every_method_has_a_row_and_every_row_is_run() -> None:
    from shapes_runs import LONG, METHODS, ROWS, runs
    from shapes_tables import finer_table, methods_table, rows_table

    table = methods_table(results())
    assert len(table["rows"]) == len(METHODS)
    assert all(line[3].startswith("2.100 ± 0.1") for line in table["rows"])
    assert len(finer_table(results())["rows"]) == 3
    planned = {run.row for run in runs(3)}
    defaults = {"depth by amoeba", "width by flap"}
    assert planned == set(ROWS) - defaults
    shown = {line[0] for line in rows_table(results())["rows"]}
    assert {"untuned", LONG, "single, 50 steps"} <= shown and not shown & set(METHODS.values()) - {
        "joint, SMoL, anchored"
    }
