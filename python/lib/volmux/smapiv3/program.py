"""The program behind every executable: what it is called by says which call it is."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from . import idl
from .failure import invalid, report, unimplemented

MOST_INPUT = 64 << 20

#: Where each interface is: a call loads no more than it needs.
MODULES = {
    "Plugin": "plugin",
    "SR": "sr",
    "Volume": "volume",
    "Datapath": "datapath",
    "Data": "data",
    "Task": "task",
}


def main(argv: list[str]) -> int:
    """Runs one call: arguments from standard input, the result to standard output. Returns the exit status."""
    # What others print must not end up in the answer.
    answer = os.dup(1)
    os.dup2(2, 1)
    try:
        result = run(os.path.basename(argv[0]), argv[1:])
        text, status = json.dumps(result), 0
    except Exception as error:
        text, status = json.dumps(report(error)), 1
    with open(answer, "w", encoding="utf-8") as out:
        out.write(text + "\n")
    return status


def run(name: str, options: list[str]) -> Any:
    call = idl.find(name)
    if call is None:
        raise unimplemented(name)
    if options != ["--json"]:
        raise invalid(f"{call} is called with --json, and nothing else")
    return function(call)(**_arguments(call))


def function(call: str) -> Callable[..., Any]:
    interface, method = call.split(".")
    module = import_module("." + MODULES[interface], __package__)
    found: Callable[..., Any] = getattr(module, method + "_" if method in ("open", "set") else method)
    return found


def _arguments(call: str) -> idl.Arguments:
    raw = sys.stdin.buffer.read(MOST_INPUT + 1)
    if len(raw) > MOST_INPUT:
        raise invalid(f"{call}: more than {MOST_INPUT} bytes of arguments")
    try:
        given = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise invalid(f"{call}: the arguments are no JSON: {error}") from None
    return idl.take(call, given)
