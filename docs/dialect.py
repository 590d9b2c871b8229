"""
The docstrings of this package, as mkdocstrings reads them: an extension of griffe, which `mkdocs.yml` names.

They are written as those of transformers and TRL are. Three things differ from what griffe expects of Google's style:

- names of others in brackets, [`~data.scenes.named_dataset`], become links to where they are documented;
- types in backticks before a colon give way to those of the signature, which are links themselves;
- `#:` lines above a constant are its docstring, `> [!NOTE]` is a note, and a list needs no empty line before it.
"""

import re
from collections.abc import Iterator
from typing import Any

import griffe


PACKAGE = "sa2va_trl"
_LINK = re.compile(r"\[`(~?)([A-Za-z_][\w.]*)`\](?![\[(])")
_SECTION = re.compile(r"^(\s*)(Args|Parameters|Returns|Yields|Raises):\s*$")
# `name (`type`, *optional*, defaults to `x`): text`, also of several names at once.
_ARGUMENT = re.compile(r"^(\*{0,2}\w+(?:, \w+)*)(?: \((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\))?:(.*)$")
# Names of an entry that go on in the next line.
_NAMES = re.compile(r"(?<=\w,)\n\s+(?=\w+(?:, \w+)*: )")
_TYPE = re.compile(r"^`[^`]+`(?: or `[^`]+`)*:\s*")
_ERROR = re.compile(r"^(\s*)`([\w.]+)`:(.*)$")
# A list right below a line of text, which Markdown would take for its continuation.
_LIST = re.compile(r"^( *)(?!- )(\S[^\n]*)\n(?=\1 *- \S)", re.MULTILINE)
_NOTE = re.compile(r"^(\s*)> \[!(NOTE|TIP|WARNING)\]\n((?:\1>.*\n?)+)", re.MULTILINE)


class Dialect(griffe.Extension):
    """Rewrites the docstrings of the package once it is loaded, before any of them is read."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """As griffe calls it."""
        if pkg.name != PACKAGE:
            return
        things = list(_below(pkg))
        for thing in things:
            if isinstance(thing, griffe.Attribute) and not thing.docstring and (text := _comment_above(thing)):
                thing.docstring = griffe.Docstring(text, parent=thing, lineno=thing.lineno)
        known = _Names(pkg, things)
        for thing in (pkg, *things):
            if thing.docstring:
                thing.docstring.value = rewritten(thing.docstring.value, lambda name, at=thing: known.find(name, at))


def rewritten(text: str, find: Any) -> str:
    """
    A docstring in the words that griffe and Markdown know.

    Args:
        text (`str`): as it stands in the code, without its indentation.
        find (`Callable`): from a name in brackets to the full one that is documented, or `None`.
    """
    text = _LIST.sub(r"\1\2\n\n", _NOTE.sub(_note, text))
    return _LINK.sub(lambda match: _link(match, find), "\n".join(_sections(_NAMES.sub(" ", text).splitlines())))


def _note(match: re.Match) -> str:
    indent, kind, quoted = match.groups()
    lines = [line.strip().removeprefix(">").strip() for line in quoted.rstrip("\n").split("\n")]
    return "\n".join([f"{indent}!!! {kind.lower()}", "", *(f"{indent}    {line}" for line in lines), ""])


def _link(match: re.Match, find: Any) -> str:
    short, name = match.groups()
    shown = name.rpartition(".")[2] if short else name
    target = find(name)
    return f"[`{shown}`][{target}]" if target else f"`{shown}`"


def _sections(lines: list[str]) -> Iterator[str]:
    """The lines, with the entries of sections as griffe wants them."""
    section, entries, begun = None, 0, False
    names: list[str] = []  # of the entry of arguments that is being read, and its lines
    body: list[str] = []
    for line in lines:
        depth = len(line) - len(line.lstrip())
        if match := _SECTION.match(line):
            yield from _arguments(names, body, entries)
            names, body, begun = [], [], False
            section, entries = match[2], len(match[1]) + 4
            yield f"{match[1]}{'Args' if section == 'Parameters' else section}:"
            continue
        if section and line.strip() and depth < entries:
            yield from _arguments(names, body, entries)
            section, names, body = None, [], []
        at_entry = depth == entries and line.strip()
        if section in ("Args", "Parameters"):
            if at_entry and (match := _ARGUMENT.match(line.strip())):
                yield from _arguments(names, body, entries)
                names, body = match[1].split(", "), [match[2]]
            elif not (at_entry and line.lstrip().startswith("> ")):  # a heading over some of a config's options
                body.append(" " * 4 * bool(at_entry) + line)
        elif section == "Raises" and at_entry:
            match = _ERROR.match(line)
            yield f"{match[1]}{match[2]}:{match[3]}" if match else " " * 4 + line
        elif section in ("Returns", "Yields") and at_entry and not begun:
            begun = True
            # Nothing before the colon: the type is the signature's.
            yield " " * entries + ": " + _TYPE.sub("", line.strip())
        else:
            yield line
    yield from _arguments(names, body, entries)


def _arguments(names: list[str], body: list[str], entries: int) -> Iterator[str]:
    """An entry of arguments, once for each of its names."""
    for name in names:
        yield " " * entries + f"{name}:{body[0]}"
        yield from body[1:]


def _below(thing: griffe.Object) -> Iterator[griffe.Object]:
    """All that is defined in a module or class and below it."""
    for member in thing.members.values():
        if not member.is_alias:
            yield member
            if isinstance(member, griffe.Module | griffe.Class):
                yield from _below(member)


def _comment_above(thing: griffe.Attribute) -> str:
    """The `#:` lines above an assignment."""
    if thing.lineno is None or not isinstance(thing.parent, griffe.Module):
        return ""
    lines, number, found = thing.lines_collection[thing.filepath], thing.lineno - 2, []
    while number >= 0 and lines[number].startswith("#:"):
        found.insert(0, lines[number][2:].strip())
        number -= 1
    return "\n".join(found)


class _Names:
    """What a name in brackets means: from the package down, near by, or the only thing of that name."""

    def __init__(self, pkg: griffe.Module, things: list[griffe.Object]):
        self.pkg, self.by_name = pkg, {}
        for thing in things:
            self.by_name.setdefault(thing.name, []).append(thing)

    def find(self, name: str, at: griffe.Object) -> str | None:
        """Its full name, where it is documented and not only named."""
        target = self._find(name, at)
        if target is None or not target.docstring or any(part.startswith("_") for part in target.path.split(".")):
            return None
        return target.path

    def _find(self, name: str, at: griffe.Object) -> griffe.Object | None:
        scopes, scope = [self.pkg], at
        while scope is not None:
            scopes.append(scope)
            scope = scope.parent
        for scope in scopes:
            try:
                thing = scope[name]
                return thing.final_target if thing.is_alias else thing
            except (KeyError, griffe.AliasResolutionError, griffe.CyclicAliasError):
                continue
        first, _, rest = name.partition(".")
        same = self.by_name.get(first, [])
        same = [thing for thing in same if thing.docstring and isinstance(thing, griffe.Class | griffe.Function)]
        if len(same) != 1:
            return None
        try:
            return same[0][rest] if rest else same[0]
        except KeyError:
            return None
