"""benchmarks/RESULTS.md, part by part."""

from benchmarks import results_page


def test_parts_are_kept_when_another_is_written(no_results: None) -> None:
    results_page.put("One", ["first", "", "## part", "x"])
    results_page.put("Two", results_page.table(("a", "b"), [("1", "2")]))
    results_page.put("One", ["changed"])
    text = results_page.PAGE.read_text(encoding="utf-8")
    assert text == "# One\n\nchanged\n\n# Two\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n"
