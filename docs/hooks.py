"""Hooks of MkDocs: benchmarks/RESULTS.md and its pictures are pages of the site as well."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).parents[1]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds RESULTS.md and the pictures under their paths in the repository."""
    found = [REPOSITORY / "benchmarks" / "RESULTS.md", *(REPOSITORY / "benchmarks" / "results").glob("*.[ps][nv]g")]
    for path in found:
        files.append(File.generated(config, path.relative_to(REPOSITORY).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links that are right in the repository, from docs/, as they are right in the site."""
    return markdown.replace("](../benchmarks/", "](benchmarks/")
