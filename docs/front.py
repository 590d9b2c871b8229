"""
A hook of `mkdocs.yml`: pages of the documentation that are no Markdown in `docs/`. What stands above it, where GitHub
shows it, is taken from there, with its links as they must be here, and the notebook becomes a page with its outputs.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter


ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "README_zh.md": "zh.md",
    "CONTRIBUTING.md": "development.md",
    "CHANGELOG.md": "changes.md",
}
NOTEBOOK, TOUR = "docs/tour.ipynb", "tour.md"
# Styles of a table of pandas, which have a place of their own in `pages.css`.
_STYLE = re.compile(r"<style scoped>.*?</style>", re.DOTALL)
_LINK = re.compile(r"(\]\()([^)#:\s]+)")


def links_from_docs(text: str) -> str:
    """The text of a page above `docs/`, with the links that it has as a page of the documentation."""
    return _LINK.sub(lambda match: match[1] + _page(match[2]), text)


def _page(target: str) -> str:
    return TOUR if target == NOTEBOOK else PAGES.get(target, target.removeprefix("docs/"))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """As mkdocs calls it."""
    for file, page in PAGES.items():
        text = links_from_docs((ROOT / file).read_text(encoding="utf-8"))
        files.append(File.generated(config, page, content=text))
    exporter = MarkdownExporter()
    text, resources = exporter.from_filename(str(ROOT / NOTEBOOK), {"output_files_dir": "tour_files"})
    files.append(File.generated(config, TOUR, content=_STYLE.sub("", text)))
    for name, content in resources["outputs"].items():
        files.append(File.generated(config, name, content=content))
    return files
