"""Labels, looks and files of the pictures."""

import pytest
from matplotlib.figure import Figure

from apollo_cli.intervals import Interval
from apollo_cli.report.style import drawn, looks, saved_text, spread, with_values


def test_labels_that_are_too_close_are_moved_apart_as_little_as_possible() -> None:
    """0.40 and 0.50 are 0.20 apart around their middle, 0.45; then 0.55 is next to 0.60, and all three move."""
    assert spread([0.4, 0.5, 0.9], [0.2, 0.2, 0.2]) == pytest.approx([0.35, 0.55, 0.9])
    assert spread([0.4, 0.5, 0.6], [0.2, 0.2, 0.2]) == pytest.approx([0.3, 0.5, 0.7])
    assert spread([0.4, 0.5], [0.2, 0.4]) == pytest.approx([0.3, 0.6])  # the second is twice as high


def test_labels_stay_in_the_picture() -> None:
    assert spread([0.0, 0.0], [0.2, 0.2]) == pytest.approx([0.1, 0.3])
    assert spread([0.9, 1.0, 1.0], [0.2, 0.2, 0.2]) == pytest.approx([0.5, 0.7, 0.9])
    assert spread([], []) == []


def test_methods_differ_in_more_than_their_colour() -> None:
    found = looks([f"m{i}" for i in range(16)], "m3")
    assert len({(look.colour, str(look.line)) for look in found.values()}) == 16
    assert (found["m3"].colour, found["m3"].line) == ("black", "-")


def test_what_all_names_begin_with_is_not_shown() -> None:
    assert {look.label for look in looks(["repro_late_lvps", "repro_late"]).values()} == {"late_lvps", "late"}
    assert looks(["repro_scratch", "repro_apollo"])["repro_apollo"].label == "apollo"
    assert looks(["repro_late"])["repro_late"].label == "repro_late"


def test_a_saving_is_a_change_of_cost() -> None:
    assert saved_text(Interval(0.534, 0.117, 3)).split() == ["\N{MINUS SIGN}53.4", "±", "11.7", "%"]
    assert saved_text(Interval(-0.05, None, 1)).split() == ["+5.0", "%"]


def test_files_are_the_same_each_time_and_show_values() -> None:
    def picture() -> tuple[bytes, str]:
        figure = Figure(figsize=(4, 3), layout="constrained")
        axes = figure.add_subplot()
        axes.plot([0, 1, 2], [0.0, 1.25, 2.5], label="<b>")
        axes.plot([0, 2], [1, 1])
        axes.set_ylabel("loss (nats)")
        axes.set_xlabel("steps")
        png, svg = drawn(figure)
        return png, with_values(svg, figure)

    (png, svg), again = picture(), picture()
    assert again == (png, svg)
    assert svg.count("<circle") == 3
    assert "<title>&lt;b&gt;\nloss: 1.25\nsteps: 1</title>" in svg
    assert "loss (nats)" in svg  # text stays text
