"""Docstrings as mkdocstrings gets them."""

import pkgutil
import textwrap

import pytest
from house import ROOT


griffe = pytest.importorskip("griffe", reason="griffe is not installed: pip install '.[docs]'")

from dialect import Dialect, rewritten  # noqa: E402  (it needs griffe)


def load(folder, **modules):
    """A package of the same name as ours, in a folder, as the extension leaves it."""
    for name, code in {"__init__": "", **modules}.items():
        file = folder / "sa2va_trl" / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(textwrap.dedent(code))
    extensions = griffe.load_extensions(Dialect())
    return griffe.load("sa2va_trl", search_paths=[folder], extensions=extensions, **LOADING)


def sections(thing):
    return {section.kind.value: section.value for section in thing.docstring.parse("google", **OPTIONS)}


LOADING = {"allow_inspection": False, "try_relative_path": False}
OPTIONS = {"returns_multiple_items": False, "returns_named_value": False}


def test_types_are_those_of_the_signature_and_names_share_a_text(tmp_path):
    code = '''
        def f(a: int, b: int, c: str | None = None) -> tuple[int, str]:
            """
            Does.

            Args:
                a, b (`int`):
                    Numbers: two
                    of them.
                c (`str`, *optional*, defaults to `None`): of `(H, W)`
                at the same depth.

            Returns:
                `tuple`: a number: and a text,
                `(int, str)`.

            Raises:
                `ValueError`: a bad one
                or two.
                `TypeError`: none.
            """
    '''
    found = sections(load(tmp_path, m=code)["m.f"])
    arguments = [(entry.name, str(entry.annotation), entry.description.strip()) for entry in found["parameters"]]
    numbers = "Numbers: two\nof them."
    assert arguments == [
        ("a", "int", numbers),
        ("b", "int", numbers),
        ("c", "str | None", "of `(H, W)`\nat the same depth."),
    ]
    (returned,) = found["returns"]
    assert str(returned.annotation) == "tuple[int, str]"
    assert returned.description == "a number: and a text,\n`(int, str)`."
    assert [(str(error.annotation), error.description) for error in found["raises"]] == [
        ("ValueError", "a bad one\nor two."),
        ("TypeError", "none."),
    ]


def test_names_in_brackets_are_links_to_what_is_documented(tmp_path):
    modules = {
        "a": '''
            """Room."""

            #: Of things.
            LIMIT = 3
            BARE = 4

            class Thing:
                """See [`go`], [`~b.work`], [`b.work`], [`Thing.go`], [`work`], [`~a.LIMIT`], [`~a.BARE`], [`_own`]."""

                def go(self) -> None:
                    """Goes; [`trl.SFTConfig`] and [a link](x.md) stay, as [`x`](y) and [`x`][y] do."""

            def _own() -> None:
                """Mine."""
        ''',
        "b": 'def work() -> None:\n    """Of [`~Thing.go`]."""\n',
    }
    package = load(tmp_path, **modules)
    assert package["a.Thing"].docstring.value == (
        "See [`go`][sa2va_trl.a.Thing.go], [`work`][sa2va_trl.b.work], [`b.work`][sa2va_trl.b.work], "
        "[`Thing.go`][sa2va_trl.a.Thing.go], [`work`][sa2va_trl.b.work], [`LIMIT`][sa2va_trl.a.LIMIT], `BARE`, `_own`."
    )
    stays = "Goes; `trl.SFTConfig` and [a link](x.md) stay, as [`x`](y) and [`x`][y] do."
    assert package["a.Thing.go"].docstring.value == stays
    assert package["b.work"].docstring.value == "Of [`go`][sa2va_trl.a.Thing.go]."
    assert package["a.LIMIT"].docstring.value == "Of things."


def test_notes_and_lists():
    text = "> [!NOTE]\n> One\n> two.\n\nOf:\n- a\n  long\n- b"
    assert rewritten(text, lambda name: None) == "!!! note\n\n    One\n    two.\n\nOf:\n\n- a\n  long\n- b"


def exists(name):
    """Whether it is anything at all: of another package, or what griffe does not see."""
    for full in (name, f"sa2va_trl.{name}"):
        try:
            pkgutil.resolve_name(full)
        except (ImportError, AttributeError):
            continue
        return True
    return False


def test_every_reference_of_our_docstrings_is_understood():
    """One that means nothing (of a name that was changed) would stand there as code, and lead nowhere."""
    missed = []

    class Seen(Dialect):
        def on_package(self, *, pkg, **kwargs):
            import dialect

            find = dialect._Names._find

            def seen(names, name, at):
                found = find(names, name, at)
                if found is None and not exists(name):
                    missed.append(f"{at.path}: {name}")
                return found

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(dialect._Names, "_find", seen)
                super().on_package(pkg=pkg, **kwargs)

    griffe.load("sa2va_trl", search_paths=[ROOT], extensions=griffe.load_extensions(Seen()), **LOADING)
    assert not missed, "\n".join(missed)
