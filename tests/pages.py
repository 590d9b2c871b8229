"""The pages that people read, and what stands in them: links, commands, options, paths."""

import json
import re
import shlex
from pathlib import Path

from house import ROOT


PAGES = [ROOT / name for name in ("README.md", "README_zh.md", "CONTRIBUTING.md")]
PAGES += [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "docs" / "tour.ipynb"]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
# What stands for a name of the reader's own.
_OWN = re.compile(r"TASK|…|\*|/x/|/my|test_my")


def text_of(page: Path) -> str:
    """A page as Markdown; of a notebook the cells of text."""
    if page.suffix != ".ipynb":
        return page.read_text(encoding="utf-8")
    cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def links(text: str) -> list[str]:
    """Links and pictures that are no address in the net."""
    return [link for link in _LINK.findall(_FENCE.sub("", text)) if not re.match(r"\w+:", link)]


def anchors(text: str) -> set[str]:
    """What a link to a heading of the page ends with."""
    headings = [re.sub(r"[`*]", "", heading) for heading in _HEADING.findall(_FENCE.sub("", text))]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def blocks(text: str, *languages: str) -> list[str]:
    """Blocks of code in one of the languages (`""` for none)."""
    return [code for language, code in _FENCE.findall(text) if language in languages]


def inline(text: str) -> list[str]:
    """Code within lines."""
    return _INLINE.findall(_FENCE.sub("", text))


def commands(text: str) -> list[list[str]]:
    """Command lines, in blocks and within lines, in words and without comments."""
    lines = [line for block in blocks(text, "", "sh", "bash") for line in block.replace("\\\n", " ").splitlines()]
    lines += [code for code in inline(text) if re.match(r"(sa2va-trl|python|make|accelerate launch) ", code)]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def paths(text: str) -> set[str]:
    """Files and folders of the repository that are named anywhere in code."""
    code = " ".join([*inline(text), *(block for _, block in _FENCE.findall(text))])
    found = re.findall(r"(?<![\w/.-])(?:sa2va_trl|recipes|docs|tests|accelerate_configs)/[\w./…*-]*", code)
    return {path.rstrip(".") for path in found if not _OWN.search(path)}


def task_of(words: list[str]) -> tuple[str, list[str]] | None:
    """The task that a command runs and its own words, if it runs one: by name, as a recipe, or behind a launcher."""
    for index, word in enumerate(words):
        if word in ("sa2va-trl", "sa2va_trl.cli") and index + 1 < len(words):
            return words[index + 1], words[index + 2 :]
        if match := re.fullmatch(r"recipes/(\w+)\.py", word):
            return match[1], words[index + 1 :]
    return None


def options(words: list[str]) -> list[str]:
    """The options among words."""
    return [word.split("=")[0] for word in words if word.startswith("--")]
