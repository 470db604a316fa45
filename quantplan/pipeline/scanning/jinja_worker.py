"""The process that a template is parsed and rendered in: it can do nothing but compute, and not for long.

    python -I jinja_worker.py JOB

Writes a line of JSON as each stage ends, so that what was found before a stage is killed is not lost. The limits are
the kernel's: CPU time by SIGPROF (a loop in C cannot put it off), the clock by SIGALRM, memory by the address space.
"""

from __future__ import annotations

import datetime
import faulthandler
import json
import resource
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from jinja2 import Environment, TemplateError, TemplateSyntaxError, ext, nodes
from jinja2.exceptions import SecurityError
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from quantplan.pipeline.scanning.jinja_conditions import PROSE
from quantplan.pipeline.scanning.jinja_suspects import suspects, words_compared
from quantplan.pipeline.scanning.talks import TALKS

MAX_OUTPUT = 256 * 1024  # characters of one prompt; what a template makes of a few lines is some thousand
MAX_PROBES = 48
# methods that change a list or mapping, which the sandbox of every engine refuses: clumsy, not hostile
CHANGES = ("append", "clear", "extend", "insert", "pop", "popitem", "remove", "reverse", "setdefault", "sort", "update")
DATES = (datetime.datetime(2024, 2, 14, 9, 30), datetime.datetime(2031, 11, 28, 21, 5))
_today = [DATES[0]]


class Refused(TemplateError):
    """The template's own word that it does not take this conversation."""


class Generation(ext.Extension):
    """`{% generation %}`, which marks an assistant's tokens for training and writes nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class Guarded(Namespace):
    """A namespace that keeps no name beginning with an underscore."""

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise SecurityError(f"a namespace cannot keep {name!r}")
        super().__setitem__(name, value)


def _dict(*given: Any, **named: Any) -> dict[Any, Any]:
    """dict, without the class's attributes to climb along."""
    return dict(*given, **named)


def environment() -> ImmutableSandboxedEnvironment:
    """As transformers and the engines that follow it set Jinja up."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[ext.loopcontrols, Generation]
    )

    def refuse(message: str = "") -> None:
        raise Refused(message)

    def as_json(value: Any, **how: Any) -> str:
        return json.dumps(value, **{"ensure_ascii": False, **how})

    made.filters["tojson"] = as_json
    made.globals.update(
        raise_exception=refuse, strftime_now=lambda form: _today[0].strftime(str(form)[:200]), namespace=Guarded,
        dict=_dict,
    )  # fmt: skip
    return made


def limit(*, cpu_s: float, wall_s: float, more_bytes: int) -> None:
    """From here on the kernel ends this process at its limits. Memory counts from what is in use now."""
    for signum in (signal.SIGPROF, signal.SIGALRM):
        faulthandler.register(signum, file=sys.stderr, all_threads=False, chain=True)  # says the line, then dies
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform.startswith("linux") else None
    for kind, value in ((resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_CPU, 2)):
        resource.setrlimit(kind, (value, value))
    resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))
    if pages is not None:
        most = pages * resource.getpagesize() + more_bytes
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    signal.setitimer(signal.ITIMER_REAL, wall_s)


def tell(stage: str, **more: Any) -> None:
    sys.stdout.write(json.dumps({"stage": stage, **more}) + "\n")
    sys.stdout.flush()


def line_of(error: BaseException) -> int | None:
    """The template's line that an error came from."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename in ("<template>", "<unknown>")]
    return lines[-1] if lines else getattr(error, "lineno", None)


def run(job: dict[str, Any]) -> None:
    """Parse and look, then render: each told as it ends."""
    made = environment()
    try:
        tree = made.parse(job["template"])
    except TemplateSyntaxError as error:
        tell("syntax", line=error.lineno, why=str(error.message)[:300])
        return
    found = sorted(set(suspects(tree)), key=lambda one: one[2])
    words = words_compared(tree)  # now: compiling folds the tree's constants
    tell("parsed", suspects=found[:200])
    if not job["render"] or any(rule in ("template-escape", "template-import") for rule, *_ in found):
        return  # what reaches for Python is not run, not even here
    compiled = made.template_class.from_code(made, made.compile(tree), made.make_globals(None), None)
    tell("compiled", lines=compiled.debug_info)
    shown: dict[str, Any] = {}
    for name, talk in TALKS.items():
        shown[name] = _render(compiled, talk)
        if shown[name].get("kind") in ("memory", "recursion", "output", "overflow"):
            tell("rendered", shown=shown)
            return  # it would do so again
    tell("rendered", shown=shown)
    by_word = _by_word(compiled, words)
    tell("probed", changes=[*_by_date(compiled, shown), *by_word, *_by_turns(shown)])


def _render(compiled: Any, talk: dict[str, Any]) -> dict[str, Any]:
    """{"text"} of a prompt, or {"error", "line"} where the template does not take it."""
    values = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "tools": None,
              "documents": None, "add_generation_prompt": True, **talk}  # fmt: skip
    pieces, n = [], 0
    try:
        for piece in compiled.generate(**values):
            n += len(piece)
            if n > MAX_OUTPUT:
                return {"error": "too long", "kind": "output", "line": None}
            pieces.append(piece)
    except MemoryError as error:
        pieces.clear()
        return {"error": "out of memory", "kind": "memory", "line": line_of(error)}
    except RecursionError as error:
        return {"error": "calls itself without end", "kind": "recursion", "line": line_of(error)}
    except SecurityError as error:
        kind = "fails" if any(f"{name!r}" in str(error) for name in CHANGES) else "security"
        return {"error": str(error)[:200], "kind": kind, "line": line_of(error)}
    except OverflowError as error:
        return {"error": str(error)[:200], "kind": "overflow", "line": line_of(error)}
    except Exception as error:  # whatever Python a template makes happen
        kind = "refused" if isinstance(error, Refused) else "fails"
        return {"error": f"{type(error).__name__}: {error}"[:200], "kind": kind, "line": line_of(error)}
    return {"text": "".join(pieces)}


def _by_date(compiled: Any, shown: dict[str, Any]) -> list[list[str]]:
    """Sentences that are there on one day and not on another."""
    _today[0] = DATES[1]
    later = _render(compiled, TALKS["system"]).get("text")
    _today[0] = DATES[0]
    before = shown["system"].get("text")
    if later is None or before is None:
        return []
    return [["template-date", "", line] for line in _new_lines(before, later) + _new_lines(later, before)][:1]


def _by_turns(shown: dict[str, Any]) -> list[list[str]]:
    """Sentences that are there once more was said, and are nobody's."""
    said = sorted({m["content"] for talk in TALKS.values() for m in talk["messages"]}, key=len, reverse=True)

    def own(name: str) -> str:
        text = str(shown[name].get("text", ""))
        for one in said:
            text = text.replace(one, "\n") if one else text
        return text

    before = "\n".join(own(name) for name in ("user", "user, no generation prompt", "system"))
    new = [line for name in ("multi-turn", "system, multi-turn", "long") for line in _new_lines(before, own(name))]
    return [["template-condition", "", new[0]]] if new else []


def _by_word(compiled: Any, words: tuple[str, ...]) -> list[list[str]]:
    """Sentences that the template adds once a text it compares with is said."""
    found = []
    plain = _render(compiled, _saying("pebble")).get("text")
    if plain is None:
        return []
    for word in words[:MAX_PROBES]:
        for said in (word, f"the {word} of it"):
            text = _render(compiled, _saying(said)).get("text")
            new = _new_lines(plain.replace("pebble", said), text) if text is not None else []
            if new:
                found.append(["template-trigger", word, new[0]])
                break
    return found


def _saying(word: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": word}]}


def _new_lines(before: str, after: str) -> list[str]:
    """Sentences of `after` that `before` has not: lines, without what differs by figures and month or day names."""
    there = {_shape(line) for line in before.split("\n")}
    return [line[:200] for line in after.split("\n") if PROSE.search(line) and _shape(line) not in there]


def _shape(line: str) -> tuple[str, ...]:
    return tuple(w for w in line.split() if w.isalpha() and w.lower() not in _CALENDAR)


_CALENDAR = frozenset(
    name.lower() for at in DATES for form in ("%A", "%a", "%B", "%b", "%p") for name in (at.strftime(form),)
)


def main() -> None:
    """One job, of a file."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Environment().from_string("{% for x in [1] %}{{ x|upper }}{% endfor %}").render()  # what Jinja imports late
    limit(cpu_s=job["cpu_s"], wall_s=job["wall_s"], more_bytes=job["more_bytes"])
    try:
        run(job)
    except (MemoryError, RecursionError) as error:
        tell("fell", kind="memory" if isinstance(error, MemoryError) else "recursion", line=line_of(error))
    except Exception as error:
        tell("fell", kind="fails", line=line_of(error), why=f"{type(error).__name__}: {error}"[:200])


if __name__ == "__main__":
    main()
