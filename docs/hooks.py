"""Hooks of MkDocs: the pages of benchmarks/ and their pictures are in the site as well."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).parents[1]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds them under their paths in the repository."""
    benchmarks = REPOSITORY / "benchmarks"
    found = [*benchmarks.glob("*.md"), *(benchmarks / "results").glob("*.svg")]
    for path in found:
        files.append(File.generated(config, path.relative_to(REPOSITORY).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links that are right in the repository, from docs/, as they are right in the site."""
    return markdown.replace("](../benchmarks/", "](benchmarks/")
