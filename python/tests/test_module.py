"""The module itself: documentation, stubs, what it shows."""

from __future__ import annotations

import ast
import inspect
import pydoc
from pathlib import Path

import volmux
from volmux import _volmux

STUB = Path(inspect.getfile(volmux)).with_name("_volmux.pyi")


def test_all_is_there_and_sorted() -> None:
    assert volmux.__all__ == sorted(volmux.__all__)
    assert all(hasattr(volmux, name) for name in volmux.__all__)
    # A module below it is there once somebody has imported it.
    found = {name for name, value in vars(volmux).items() if not inspect.ismodule(value)}
    public = {name for name in found if not name.startswith("_") and name != "annotations"}
    assert public | {"__version__"} == set(volmux.__all__)


def test_everything_is_documented() -> None:
    for name in volmux.__all__:
        thing = getattr(volmux, name)
        if name in ("__version__", "AttachTarget"):
            continue
        assert inspect.getdoc(thing), name
        if inspect.isclass(thing) and thing.__module__ == "volmux":
            for member, value in vars(thing).items():
                if not member.startswith("_") and (callable(value) or isinstance(value, property)):
                    assert inspect.getdoc(value), f"{name}.{member}"


def test_every_call_is_there_twice() -> None:
    for kind in (volmux.Pool, volmux.Device, volmux.Server):
        awaited = {name for name in vars(kind) if name.endswith("_async")}
        assert awaited
        for name in awaited:
            waits = getattr(kind, name.removesuffix("_async"))
            assert waits.__text_signature__ == getattr(kind, name).__text_signature__
    plain = {"capabilities", "policy", "list_volumes", "closed"}
    names = {name for name in vars(volmux.Pool) if not name.startswith("_") and not name.endswith("_async")}
    assert {name for name in names if not hasattr(volmux.Pool, f"{name}_async")} == plain


def test_stubs_have_the_documentation_of_the_module() -> None:
    checked = 0
    for node in ast.walk(ast.parse(STUB.read_text())):
        if isinstance(node, ast.ClassDef):
            kind = getattr(_volmux, node.name)
            assert ast.get_docstring(node) == inspect.getdoc(kind), node.name
            for member in node.body:
                if isinstance(member, ast.FunctionDef) and not member.name.startswith("__"):
                    told = inspect.getdoc(getattr(kind, member.name))
                    assert ast.get_docstring(member) == told, f"{node.name}.{member.name}"
                    checked += 1
    assert checked > 60


def test_help_is_worth_reading() -> None:
    text = pydoc.plain(pydoc.render_doc(volmux))
    for told in ("open_pool", "One storage layer", "snapshot_volume", "class NotFound", "asyncio", "Ctrl-C"):
        assert told in text, told
    assert "_Text" not in pydoc.plain(pydoc.render_doc(volmux.Error))


def test_the_version_is_that_of_the_wheel() -> None:
    from importlib.metadata import version

    assert version("volmux") == volmux.__version__
