"""What README and documentation say is there: files, links, tasks, options; and the pages build."""

import importlib
import os
import re
import subprocess
import sys
from functools import cache
from importlib.util import find_spec

import pytest
import yaml
from house import ROOT, files_of
from pages import NAMES, PAGES, anchors, blocks, commands, inline, links, options, paths, task_of, text_of

from sa2va_trl.scripts import TASKS
from sa2va_trl.scripts.config_files import config_file


BENCHMARKS = ROOT / "recipes" / "benchmarks"
# Of programs that are not ours.
OTHERS = {"--dist", "--execute", "--inplace", "--to"}
READMES = [text_of(ROOT / name) for name in ("README.md", "README_zh.md")]


@cache
def options_of(task):
    """The options of a task, as its parser knows them; `--config` is read before it, and some go on to another one."""
    own = {"--config", *importlib.import_module(f"sa2va_trl.scripts.{task}").make_parser()._option_string_actions}
    return own | options_of("sft") if task == "cross_validate" else own


def options_of_file(file):
    """Those that a script of `recipes/benchmarks` or `docs` takes; some go on to the task of the same name."""
    text = file.read_text()
    found = set(re.findall(r'"(--\w+)"', text))
    fields = re.findall(r"^    (\w+): .* = field\(", text, re.MULTILINE)
    passed_on = options_of(file.stem) if "parse_known_args" in text else set()
    return found | {f"--{name}" for name in fields} | passed_on


def wrong_commands(text):
    """Commands of a page that run nothing, or with options that there are none of."""
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for words in commands(text):
        line = " ".join(words)
        if found := task_of(words):
            task, rest = found
            if task in ("TASK", "…"):
                continue
            if task not in TASKS:
                yield f"no task {task}: {line}"
                continue
            if unknown := [name for name in options(rest) if name not in options_of(task)]:
                yield f"{task} has no {', '.join(unknown)}: {line}"
            if "--config" in rest and not (name := rest[rest.index("--config") + 1]).isupper():
                try:
                    config_file(name)
                except (ValueError, OSError) as error:
                    yield f"{error}: {line}"
        elif words[0] == "make":
            yield from (f"no target {name}: {line}" for name in words[1:] if "=" not in name and name not in targets)
        elif words[0] == "python" and words[1].endswith(".py") and (ROOT / words[1]).is_file():
            there = options_of_file(ROOT / words[1])
            yield from (f"{words[1]} has no {name}: {line}" for name in options(words) if name not in there)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    wrong = []
    for link in links(text_of(page)):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists():
            wrong.append(f"{link}: no such file")
        elif anchor and target.suffix == ".md" and anchor not in anchors(text_of(target)):
            wrong.append(f"{link}: no such heading; there are {', '.join(sorted(anchors(text_of(target))))}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_files_that_are_named_are_there(page):
    missing = sorted(path for path in paths(text_of(page)) if not (ROOT / path).exists())
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_have_tasks_and_options_that_there_are(page):
    wrong = list(wrong_commands(text_of(page)))
    assert not wrong, "\n".join(wrong)


def test_options_within_lines_are_those_of_some_task():
    there = set(OTHERS).union(*map(options_of, TASKS), *map(options_of_file, BENCHMARKS.glob("*.py")))
    wrong = []
    for page, name in zip(PAGES, NAMES, strict=True):
        named = {option for code in inline(text_of(page)) for option in re.findall(r"(?<![\w-])--\w+", code)}
        wrong += [f"{name}: {option}" for option in named - there - options_of_file(ROOT / "docs" / "strip.py")]
    assert not [entry for entry in wrong if not entry.endswith(("--NAME", "--no_NAME"))]


def test_what_is_wrong_would_be_seen():
    text = "[a](docs/data.md#no) `recipes/none.py`\n\n```\nsa2va-trl sfd\n"
    text += "sa2va-trl sft --no_such 1 \\\n  --config tiny/none\nmake nothing\n"
    text += "python recipes/benchmarks/stage2.py --not_there\n```\n"
    assert links(text) == ["docs/data.md#no"] and paths(text) == {"recipes/none.py", "recipes/benchmarks/stage2.py"}
    wrong = "\n".join(wrong_commands(text))
    for part in (
        "no task sfd",
        "sft has no --no_such",
        "tiny/none",
        "no target nothing",
        "stage2.py has no --not_there",
    ):
        assert part in wrong
    assert anchors("# A `b`: c, d\n\n```\n# none\n```\n") == {"a-b-c-d"}


def test_the_table_of_tasks_has_all_of_them():
    for text in READMES:
        table = re.search(r"\| `sa2va-trl …` .*?\n\n", text, re.DOTALL)[0]
        first = [row.split("|")[1] for row in table.strip().splitlines()[2:]]
        assert sorted(name for cell in first for name in re.findall(r"`(\w+)`", cell)) == sorted(TASKS)


def test_both_languages_have_the_same_commands_code_links_and_figures():
    english, chinese = READMES
    assert commands(english)[:4] == commands(chinese)[:4]
    code = [re.sub(r"  #.*", "", block) for text in READMES for block in blocks(text, "python")]
    assert len(code) == 2 and code[0] == code[1]
    linked = [set(links(text)) - {"README.md", "README_zh.md"} for text in READMES]
    assert linked[0] == linked[1] and len(linked[0]) > 10
    figures = [sorted(re.findall(r"[−+]?\d+\.\d+", text)) for text in READMES]
    assert figures[0] == figures[1] and len(figures[0]) > 8


def test_pictures_are_small():
    sizes = {file.name: file.stat().st_size for file in (ROOT / "docs" / "pictures").iterdir()}
    assert {"strip.png", "stages.svg"} <= set(sizes) and max(sizes.values()) < 300_000


def test_every_module_is_documented_once():
    pages = [file.read_text() for file in sorted((ROOT / "docs" / "api").glob("*.md"))]
    documented = [name for page in pages for name in re.findall(r"^::: ([\w.]+)$", page, re.MULTILINE)]
    packages = {module.rpartition(".")[0] for module in files_of(ROOT)}
    modules = {module for module in files_of(ROOT) if not re.search(r"\._", module)} - packages - {"sa2va_trl.cli"}
    assert sorted(documented) == sorted(modules)


def test_every_page_is_in_the_menu():
    class Loader(yaml.SafeLoader):
        """(mkdocs.yml names functions of Python, which are none of this test's business.)"""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)
    text = str(yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)["nav"])
    for file in (ROOT / "docs").rglob("*.md"):
        assert f"'{file.relative_to(ROOT / 'docs').as_posix()}'" in text


@pytest.mark.slow
def test_the_example_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(READMES[0], "python")
    whole = "hospital=2)"
    assert code.count(whole) == 1 and "max_steps=20" in code
    small = code.replace(whole, "hospital=2, frames_per_video=2, size=64)")
    names = {}
    exec(small.replace("max_steps=20", "max_steps=1, use_cpu=True"), names)
    assert names["result"].masks.shape == (1, 64, 64)


@pytest.mark.slow
def test_pages_build_without_a_warning_and_ask_for_nothing_elsewhere(tmp_path):
    if not find_spec("mkdocs") or not find_spec("mkdocstrings") or not find_spec("nbconvert"):
        pytest.skip("mkdocs and its plugins are not installed: pip install '.[docs]'")
    line = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    finished = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-5000:]
    assert "WARNING" not in finished.stderr
    site = list((tmp_path / "site").rglob("*.html"))
    assert len(site) > len(list((ROOT / "docs").rglob("*.md")))
    for page in site:
        text = page.read_text()
        assert not re.findall(r"<(?:script|img|iframe|source)[^>]* src=\"?(?:https?:)?//[^>]*", text)
        assert not re.findall(r"<link[^>]* href=\"?(?:https?:)?//[^>]*", text)
        # What would be if a reference of a docstring had not been understood.
        prose = re.sub(r"<(pre|code)\b.*?</\1>", "", text, flags=re.DOTALL)
        assert not re.findall(r"\[`~?[\w.]+`?\]|\[~?[\w.]+\]\[|`[\w.]+`|\[!NOTE\]", prose), page.name
    for sheet in (tmp_path / "site").rglob("*.css"):
        assert not re.findall(r"url\([\"']?(?:https?:)?//[^)]*", sheet.read_text())
