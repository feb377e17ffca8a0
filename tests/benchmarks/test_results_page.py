"""Pages of results, part by part."""

import re

from benchmarks import results_page


def test_parts_are_kept_when_another_is_written(no_results: None) -> None:
    page = results_page.FOLDER / "PAGE.md"
    results_page.put("One", ["first", "", "## part", "x"], page)
    results_page.put("Two", results_page.table(("a", "b"), [("1", "2")]), page)
    results_page.put("One", ["changed"], page)
    text = page.read_text(encoding="utf-8")
    assert text == "# One\n\nchanged\n\n# Two\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n"


def test_the_list_of_pages_is_complete() -> None:
    listed = re.findall(r"\]\((\w+)\.md\)", (results_page.FOLDER / "RESULTS.md").read_text(encoding="utf-8"))
    pages = {path.stem for path in results_page.FOLDER.glob("*.md")} - {"RESULTS"}
    assert sorted(listed) == sorted(pages)
    assert set(results_page.PAGES.values()) <= pages
    for title in (*results_page.PAGES, "What is saved: pydocs"):
        assert f"# {title}\n" in results_page.page_of(title).read_text(encoding="utf-8")
