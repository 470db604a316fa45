"""Where a template decides by what was said, how much of it, or when: the form that hidden instructions take."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from jinja2 import nodes

# (rule, severity, line, message)
Suspect = tuple[str, str, int, str]


def words(text: str) -> frozenset[str]:
    """A table of words, as they stand in a line."""
    return frozenset(text.split())


DATES = frozenset({"strftime_now", "date_string", "current_date", "today", "now"})
PROSE = re.compile(r"(?:[^\W\d_]{2,}[\s,.:;]+){3,}[^\W\d_]{2,}")
WORD = re.compile(r"[^\W_]")
# keys of a message or of a part of it: asked for by `in`, they tell its form and nothing of what was said
_KEYS = words(
    "text content parts blocks type value values image images image_url video video_url audio audio_url input_audio "
    "file url role name thinking reasoning reasoning_content tool_calls tool_call_id arguments function id data "
    "thoughts documents none null true false"
)
# what vendors let a user type to turn reasoning on and off
_SWITCH = re.compile(r"/?(?:no_|no-)?think(?:ing)?|(?:detailed )?thinking (?:on|off)", re.IGNORECASE)
_MESSAGE_TEXT = frozenset({"content", "text"})
_SEARCHES = frozenset({"startswith", "endswith", "find", "rfind", "index", "rindex", "count", "match", "search"})
_SAME_TEXT = words(
    "lower upper trim strip lstrip rstrip string replace title capitalize casefold escape safe format join tojson "
    "split rsplit splitlines partition list last first reverse default d indent truncate striptags urlencode"
)


class _Taint:
    """Which expressions are what was said, or when. Names by assignment, to a fixed point."""

    def __init__(self, tree: nodes.Template) -> None:
        self.said, self.when = {"content", "text"}, set(DATES)
        assigns: list[tuple[Any, Any]] = [(n.target, n.node) for n in tree.find_all(nodes.Assign)]
        # the pieces of a text that is taken apart; of plain content they are parts, whose text is asked for by key
        assigns += [
            (n.target, n.iter) for n in tree.find_all(nodes.For) if isinstance(n.iter, (nodes.Call, nodes.Filter))
        ]
        for _ in range(8):
            before = len(self.said) + len(self.when)
            for target, value in assigns:
                name = target.name if isinstance(target, (nodes.Name, nodes.NSRef)) else None
                name = f"{target.name}.{target.attr}" if isinstance(target, nodes.NSRef) else name
                if name and self.is_said(value):
                    self.said.add(name)
                if name and self.is_when(value):
                    self.when.add(name)
            if len(self.said) + len(self.when) == before:
                break

    def is_said(self, node: Any, depth: int = 0) -> bool:
        """Whether it is a message's own text, in whole or in part."""
        if depth > 40:
            return True
        if isinstance(node, nodes.Name):
            return node.name in self.said
        if isinstance(node, nodes.Getattr):
            if isinstance(node.node, nodes.Name) and f"{node.node.name}.{node.attr}" in self.said:
                return True
            return node.attr in _MESSAGE_TEXT
        if isinstance(node, nodes.Getitem):
            if isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
                return node.arg.value in _MESSAGE_TEXT
            return self.is_said(node.node, depth + 1)
        if isinstance(node, nodes.Filter):
            inner = node.node
            if node.name == "map" and any(
                k.key == "attribute" and getattr(k.value, "value", "") in _MESSAGE_TEXT for k in node.kwargs
            ):
                return True
            if isinstance(inner, nodes.Name) and inner.name in ("messages", "message"):
                return node.name in ("string", "tojson", "join", "pprint")
            return node.name in _SAME_TEXT and self.is_said(inner, depth + 1)
        if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr):
            return node.node.attr in _SAME_TEXT and self.is_said(node.node.node, depth + 1)
        if isinstance(node, (nodes.Add, nodes.Concat, nodes.Or, nodes.And)):
            return any(self.is_said(part, depth + 1) for part in node.iter_child_nodes())
        return False

    def is_when(self, node: Any) -> bool:
        if isinstance(node, nodes.Name):
            return node.name in self.when
        if isinstance(node, nodes.Getattr):
            return isinstance(node.node, nodes.Name) and f"{node.node.name}.{node.attr}" in self.when
        if isinstance(node, nodes.Call):
            return self.is_when(node.node) or (isinstance(node.node, nodes.Getattr) and self.is_when(node.node.node))
        return isinstance(node, (nodes.Filter, nodes.Getitem)) and self.is_when(node.node)

    def is_length(self, node: Any) -> bool:
        """A count of turns, or of what was said."""
        if isinstance(node, nodes.Filter) and node.name in ("length", "count"):
            inner = node.node
            return self.is_said(inner) or (isinstance(inner, nodes.Name) and inner.name == "messages")
        return isinstance(node, nodes.Getattr) and isinstance(node.node, nodes.Name) and node.node.name == "loop" and (
            node.attr in ("index", "index0", "revindex", "revindex0", "length"))  # fmt: skip


def conditions(tree: nodes.Template) -> Iterator[Suspect]:
    taint = _Taint(tree)
    asked = [(node, *one) for node in tree.find_all((nodes.Compare, nodes.Call, nodes.Filter, nodes.Test))
             for one in _asked(node, taint)]  # fmt: skip
    weight = _Weight(tree, {id(node) for node, *_ in asked})
    for node, rule, text, what in asked:
        if text is not None and text.strip().lower() in _KEYS:
            continue
        wrote = weight.of(node)
        is_mark = text is not None and (not WORD.match(text.strip()) or "<" in text)
        if is_mark and wrote < SENTENCES:
            continue  # a markup of the model's own, as in: '</think>' in content
        if text is not None and _SWITCH.fullmatch(text.strip()):
            wrote = NOTHING
        severity, then = ((("note", ""), ("warning", ", and then writes words of its own"),
                           ("error", ", and then writes sentences of its own"))[wrote])  # fmt: skip
        yield rule, severity, node.lineno, what + then


NOTHING, WORDS, SENTENCES = 0, 1, 2


class _Weight:
    """What hangs on a condition: nothing of the template's own, words, or sentences. A name that is set where it
    holds carries it on to the conditions that ask for that name."""

    def __init__(self, tree: nodes.Template, asked: set[int]) -> None:
        self._of: dict[int, int] = {}
        branches: list[Any] = list(tree.find_all((nodes.If, nodes.CondExpr)))
        behind: dict[str, list[int]] = {}  # a name -> the conditions that it hangs on
        for assign in tree.find_all(nodes.Assign):
            here = [id(n) for n in _all(assign.node) if id(n) in asked]
            self._note(behind, assign.target, here)
        for branch in branches:
            here = [id(n) for n in _all(branch.test) if id(n) in asked]
            for assign in branch.find_all(nodes.Assign) if here else ():
                self._note(behind, assign.target, here)
        for branch in branches:
            tested = list(_all(branch.test))
            hangs_on = [id(n) for n in tested if id(n) in asked]
            for node in tested:
                hangs_on += behind.get(_name_of(node) or "", ())
            wrote = _writes(branch) if hangs_on else NOTHING
            for one in hangs_on:
                self._of[one] = max(wrote, self._of.get(one, NOTHING))

    @staticmethod
    def _note(behind: dict[str, list[int]], target: Any, here: list[int]) -> None:
        name = _name_of(target)
        if name and here:
            behind.setdefault(name, []).extend(here)

    def of(self, node: Any) -> int:
        return self._of.get(id(node), NOTHING)


def _all(node: Any) -> Iterator[Any]:
    yield node
    yield from node.find_all(nodes.Node)


def _name_of(node: Any) -> str | None:
    """The name of a variable, or of a namespace's field as `ns.field`."""
    if isinstance(node, nodes.Name):
        return str(node.name)
    if isinstance(node, nodes.NSRef):
        return f"{node.name}.{node.attr}"
    if isinstance(node, nodes.Getattr) and isinstance(node.node, nodes.Name):
        return f"{node.node.name}.{node.attr}"
    return None


def _asked(node: Any, taint: _Taint) -> Iterator[tuple[str, str | None, str]]:  # noqa: C901, PLR0912  a table of forms
    """(rule, the text looked for, in words) of a condition on what was said, how much, or when."""
    if isinstance(node, nodes.Compare):
        sides = [node.expr, *(op.expr for op in node.ops)]
        consts = [c.value for side in sides for c in constants(side)]
        texts = [value for value in consts if isinstance(value, str) and WORD.search(value)]
        if texts and any(taint.is_said(side) for side in sides):
            yield "template-trigger", texts[0], f"looks for {texts[0][:60]!r} in what was said"
        if any(taint.is_when(side) for side in sides) and consts:
            yield "template-date", None, f"decides by the date ({str(consts[0])[:40]!r})"
        numbers = [value for value in consts if type(value) is int and value > 2]
        if numbers and any(taint.is_length(side) for side in sides):
            yield "template-condition", None, f"decides by how much was said (more or less than {numbers[0]:,})"
        return
    if isinstance(node, nodes.Call):
        if not (isinstance(node.node, nodes.Getattr) and node.node.attr in _SEARCHES and taint.is_said(node.node.node)):
            return
        args, how = node.args, f".{node.node.attr}"
    elif isinstance(node, nodes.Test):
        if node.name not in ("in", "eq", "equalto", "==", "ne", "sameas", "!=") or not (
            taint.is_said(node.node) or any(taint.is_said(arg) for arg in node.args)
        ):
            return
        args, how = [node.node, *node.args], f"is {node.name}"
    else:
        first = node.args[0] if node.args else None
        of_text = isinstance(first, nodes.Const) and first.value in _MESSAGE_TEXT
        if node.name not in ("selectattr", "rejectattr") or not of_text or len(node.args) < 3:
            return
        args, how = node.args[2:], f"|{node.name}"
    for arg in args:
        for const in constants(arg):
            if isinstance(const.value, str) and WORD.search(const.value):
                yield "template-trigger", const.value, f"looks for {const.value[:60]!r} in what was said ({how})"


_MARKUP = re.compile(r"<[^<>]{0,80}>|\[[^\[\]]{0,80}\]|\\[nt]")
_ROLES = words("user assistant system tool model human developer ipython function observation")


def _writes(branch: Any) -> int:
    """What one side of a condition puts into the prompt that is the template's own."""
    if isinstance(branch, nodes.CondExpr):
        sides: list[Any] = [side for side in (branch.expr1, branch.expr2) if side is not None]
    else:
        sides = [*branch.body, *branch.else_]  # an elif is a condition of its own
    most = NOTHING
    for side in sides:
        spoken = {id(n) for call in _all(side) if isinstance(call, nodes.Call) and
                  getattr(call.node, "name", "") == "raise_exception" for n in _all(call)}  # fmt: skip
        asked = {
            id(n) for c in _all(side) if isinstance(c, (nodes.Compare, nodes.Getitem, nodes.Test)) for n in _all(c)
        }
        for node in _all(side):
            text = node.data if isinstance(node, nodes.TemplateData) else getattr(node, "value", None)
            if not isinstance(text, str) or id(node) in spoken or id(node) in asked:
                continue
            if PROSE.search(text):
                return SENTENCES
            plain = _MARKUP.sub(" ", text).split()
            if any(len(w) > 2 and w.isalpha() and w.lower() not in _ROLES for w in plain):
                most = WORDS
    return most


def constants(node: Any) -> list[Any]:
    """The literals in an expression."""
    return [node] if isinstance(node, nodes.Const) else list(node.find_all(nodes.Const))
