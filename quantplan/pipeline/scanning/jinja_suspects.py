"""What in a template's syntax tree no chat template needs. Runs in the worker: a template is not even parsed in our
own process."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from jinja2 import nodes

from quantplan.pipeline.scanning.jinja_conditions import WORD, conditions, constants, words

# (rule, severity, line, message)
Suspect = tuple[str, str, int, str]

INTERNALS = words(
    "class mro base bases subclasses globals builtins init import dict getattribute getattr code closure reduce "
    "reduce_ex func self wrapped module loader spec call new del setattr class_getitem init_subclass"
)
REACHES = words(
    "popen subprocess builtins func_globals func_code f_globals f_locals f_back f_builtins gi_frame gi_code cr_frame "
    "ag_frame tb_frame mro environ getenv importlib import_module check_output load_module im_func im_class"
)
CALLS = frozenset({"system", "eval", "exec", "open", "spawn", "fork", "kill", "unlink", "remove_all"})
NO_NAMES = frozenset({"os", "sys", "open", "eval", "exec", "subprocess", "builtins", "importlib", "environ", "globals"})
ODD_NAMES = frozenset({"cycler", "joiner", "lipsum", "self", "config", "request", "url_for", "get_flashed_messages"})
MANY = 100_000  # turns of a loop, or copies of a text, that no prompt has
_DUNDER = re.compile(r"__\w+?__")


def suspects(tree: nodes.Template) -> Iterator[Suspect]:
    """Every suspicious construct with its line, in no order."""
    own = {node.name for node in tree.find_all(nodes.Name) if node.ctx in ("store", "param")}
    own |= {macro.name for macro in tree.find_all(nodes.Macro)}
    for node in tree.find_all(nodes.Node):
        yield from _escapes(node, own)
        yield from _costs(node)
    yield from conditions(tree)


def words_compared(tree: nodes.Template) -> tuple[str, ...]:
    """The texts that the template compares or searches for, or hands to a filter or test: what a trigger could be."""
    found: dict[str, None] = {}
    for node in tree.find_all((nodes.Compare, nodes.Call, nodes.Filter, nodes.Test, nodes.Dict)):
        for text in node.find_all(nodes.Const):
            if isinstance(text.value, str) and 2 <= len(text.value) <= 80 and WORD.search(text.value):
                found[text.value] = None
    return tuple(found)


def _escapes(node: Any, own: set[str]) -> Iterator[Suspect]:
    if isinstance(node, (nodes.Import, nodes.FromImport, nodes.Include, nodes.Extends)):
        what = type(node).__name__.lower()
        yield "template-import", "error", node.lineno, f"{what}: a chat template has nothing to load from"
    elif isinstance(node, nodes.Getattr):
        yield from _attribute(node.attr, node.lineno, is_called=False)
    elif isinstance(node, nodes.Getitem):
        yield from _item(node)
    elif isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr) and node.node.attr in CALLS:
        yield "template-escape", "error", node.lineno, f"calls .{node.node.attr}(…)"
    elif isinstance(node, nodes.Filter) and node.name in ("attr", "map", "random"):
        yield from _filter(node)
    elif isinstance(node, nodes.Name) and node.ctx == "load" and node.name not in own:
        yield from _name(node)
    elif isinstance(node, nodes.Const) and isinstance(node.value, str):
        hidden = _DUNDER.search(node.value)
        if hidden and hidden[0].strip("_") in INTERNALS:
            yield "template-escape", "error", node.lineno, f"holds the text {hidden[0]!r}, a name of Python's internals"


def _attribute(name: str, line: int, *, is_called: bool) -> Iterator[Suspect]:
    if name in REACHES or (name.startswith("__") and (name.endswith("__") or name[2:] in INTERNALS)):
        yield "template-escape", "error", line, f"reaches for .{name}: Python's internals, not a message"


def _item(node: nodes.Getitem) -> Iterator[Suspect]:
    arg = node.arg
    if isinstance(arg, nodes.Const) and isinstance(arg.value, str):
        yield from _attribute(arg.value, node.lineno, is_called=False)
    elif isinstance(arg, (nodes.Add, nodes.Concat)) and any(
        isinstance(c.value, str) and "_" in c.value for c in arg.find_all(nodes.Const)
    ):
        yield "template-escape", "error", node.lineno, "puts an attribute's name together out of pieces"


def _filter(node: nodes.Filter) -> Iterator[Suspect]:
    if node.name == "random":
        yield "template-random", "warning", node.lineno, "|random: the prompt is another one each time"
        return
    named = [k.value for k in node.kwargs if k.key == "attribute"] if node.name == "map" else list(node.args[:1])
    if node.name == "map" and node.args and isinstance(node.args[0], nodes.Const) and node.args[0].value == "attr":
        named = list(node.args[1:2])
    for arg in named:
        if not isinstance(arg, nodes.Const):
            if node.name == "attr":
                yield "template-escape", "error", node.lineno, "|attr with a computed name"
        elif isinstance(arg.value, str):
            parts = arg.value.split(".")
            if any(p.startswith("_") or p in REACHES for p in parts):
                yield "template-escape", "error", node.lineno, f"|{node.name} of {arg.value!r}: Python's internals"
            elif node.name == "attr":
                yield "template-attr", "warning", node.lineno, f"|attr({arg.value!r}): message.{arg.value} would do"


def _name(node: nodes.Name) -> Iterator[Suspect]:
    if node.name in NO_NAMES or _DUNDER.fullmatch(node.name):
        yield "template-escape", "error", node.lineno, f"uses {node.name}, a name of Python's"
    elif node.name in ODD_NAMES:
        yield "template-global", "warning", node.lineno, f"uses {node.name}: attacks begin there, chat templates don't"


def _costs(node: Any) -> Iterator[Suspect]:
    if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Name) and node.node.name == "range":
        n = max((abs(c.value) for a in node.args for c in constants(a) if isinstance(c.value, int)), default=0)
        if n >= MANY:
            yield "template-cost", "error", node.lineno, f"range of {n:,}"
    elif isinstance(node, (nodes.Mul, nodes.Pow)):
        numbers = [c.value for c in constants(node) if isinstance(c.value, int) and not isinstance(c.value, bool)]
        if any(abs(n) >= MANY for n in numbers) or (isinstance(node, nodes.Pow) and any(n > 64 for n in numbers)):
            yield "template-cost", "error", node.lineno, "multiplies up to something that no prompt holds"
