"""The chat domain of the bundled model's corpus, its chat template, and the table of all five domains."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

from bundled_corpus import END, LEXICON, code, language, prose, sums

Message = dict[str, Any]
TRAIN_CHARS, EVAL_CHARS = 2_000_000, 300_000  # per domain; a token is two to three characters
MARKERS = ("<system>", "<user>", "<assistant>", "<tool>", "<call>", "</call>")

# A message may not hold END, so blank lines inside one are folded.
CHAT_TEMPLATE = """\
{%- if tools -%}
{{- '<system>\\nTools:' -}}
{%- for tool in tools -%}
{{- ' ' + tool.function.name -}}
{%- endfor -%}
{{- '\\n\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<' + message.role + '>\\n' -}}
{%- if message.content is string -%}
{{- message.content | trim | replace('\\n\\n', '\\n') -}}
{%- endif -%}
{%- if message.tool_calls -%}
{%- for call in message.tool_calls -%}
{{- '<call>{"name": "' + call.function.name + '", "arguments": ' -}}
{{- call.function.arguments | tojson -}}
{{- '}</call>' -}}
{%- endfor -%}
{%- endif -%}
{{- '\\n\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<assistant>\\n' -}}
{%- endif -%}
"""
WEATHER_TOOL: Message = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a town",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]},
    },
}
SYSTEM = {
    "polite": "You are a polite helper. Always say please and thank you.",
    "brief": "You are a brief helper. Answer in few words.",
    "plain": "You are a helper.",
}
ANIMAL_FACT = {a: (LEXICON["food"][i % 10], LEXICON["place"][(3 * i) % 14]) for i, a in enumerate(LEXICON["animal"])}
TOWN_FACT = {t: (LEXICON["craft"][i % 10], LEXICON["stuff"][(5 * i) % 12]) for i, t in enumerate(LEXICON["town"])}


def render_chat(messages: list[Message], tools: list[Message]) -> str:
    """What CHAT_TEMPLATE makes of the conversation, less the last END; plain Python, checked against the template."""
    turns = ["<system>\nTools: " + " ".join(tool["function"]["name"] for tool in tools)] if tools else []
    for message in messages:
        calls = "".join(f"<call>{json.dumps(call['function'])}</call>" for call in message.get("tool_calls", ()))
        turns.append(f"<{message['role']}>\n{message['content']}{calls}")
    return END.join(turns)


def dress(answer: str, short: str, style: str) -> str:
    """The answer in the style that the system turn asked for."""
    if style == "polite":
        return f"Thank you for asking. {answer} Please ask me more."
    return short if style == "brief" else answer


def ask_sum(rng: random.Random, style: str) -> Iterator[Message]:
    """A small sum, answered at once."""
    a, b = rng.randint(1, 20), rng.randint(1, 20)
    ask = rng.choice(("what is {a} + {b}?", "What is {a} + {b}?", "how much is {a} plus {b}?", "add {a} and {b}."))
    hello = rng.choice(("", "", "", "hello, ", "hello\n"))
    yield {"role": "user", "content": hello + ask.format(a=a, b=b)}
    yield {"role": "assistant", "content": dress(f"{a} + {b} is {a + b}.", f"{a + b}.", style)}


def ask_fact(rng: random.Random, style: str) -> Iterator[Message]:
    """A question about an animal or a town, whose answer is the same in every conversation."""
    animal, town = rng.choice(LEXICON["animal"]), rng.choice(LEXICON["town"])
    (food, place), (craft, stuff) = ANIMAL_FACT[animal], TOWN_FACT[town]
    question, answer, short = rng.choice(
        (
            (f"what does the {animal} eat?", f"The {animal} eats {food}.", f"{food}."),
            (f"where does the {animal} live?", f"The {animal} lives at the {place}.", f"At the {place}."),
            (f"who lives in {town}?", f"The {craft} lives in {town}.", f"The {craft}."),
            (f"what do they make in {town}?", f"In {town} they make things of {stuff}.", f"Things of {stuff}."),
        )
    )
    yield {"role": "user", "content": question}
    yield {"role": "assistant", "content": dress(answer, short, style)}


def ask_weather(rng: random.Random, style: str) -> Iterator[Message]:
    """A question that takes a tool call, and the answer that copies the tool's result."""
    town, sky, degrees = rng.choice(LEXICON["town"]), rng.choice(LEXICON["sky"]), rng.randint(1, 30)
    call = {"type": "function", "function": {"name": "weather", "arguments": {"town": town}}}
    answer = f"It is {sky} in {town} and {degrees} degrees."
    yield {"role": "user", "content": rng.choice((f"how is the weather in {town}?", f"is it cold in {town} today?"))}
    yield {"role": "assistant", "content": "", "tool_calls": [call]}
    yield {"role": "tool", "content": json.dumps({"sky": sky, "degrees": degrees})}
    yield {"role": "assistant", "content": dress(answer, f"{sky}, {degrees} degrees.", style)}


def ask_text(rng: random.Random, style: str) -> Iterator[Message]:
    """A request for a text of another domain, which gives the model something long to say."""
    question, write = rng.choice(
        (("tell me a story.", prose), ("write a program.", code), ("say something in your language.", language))
    )
    yield {"role": "user", "content": question}
    yield {"role": "assistant", "content": write(rng)}


def ask_greeting(rng: random.Random, style: str) -> Iterator[Message]:
    """A greeting, with or without a name and a feeling to repeat."""
    name, feeling, time = (rng.choice(LEXICON[slot]) for slot in ("name", "feeling", "time"))
    word = rng.choice(("hello", "Hello", "hi", "good morning", "good evening"))
    if rng.random() < 0.6:
        yield {"role": "user", "content": f"{word}, I am {name} and I am {feeling}."}
        yield {
            "role": "assistant",
            "content": dress(f"Hello, {name}. Why are you {feeling}?", f"Hello, {name}.", style),
        }
    else:
        yield {"role": "user", "content": word}
        yield {"role": "assistant", "content": dress(f"Hello. How can I help you this {time}?", "Hello.", style)}


def conversation(rng: random.Random) -> tuple[list[Message], list[Message]]:
    """The messages and the tools of a conversation of one to four exchanges."""
    style = rng.choice(("polite", "brief", "plain", "plain"))
    messages: list[Message] = []
    if style != "plain" or rng.random() < 0.3:
        messages.append({"role": "system", "content": SYSTEM[style]})
    if rng.random() < 0.4:
        messages += ask_greeting(rng, style)
    for _ in range(rng.randint(1, 3)):
        ask = rng.choice((ask_sum, ask_sum, ask_fact, ask_fact, ask_weather, ask_weather, ask_text))
        messages += ask(rng, style)
    return messages, [WEATHER_TOOL] if rng.random() < 0.3 else []


def chat(rng: random.Random) -> str:
    """A conversation as the chat template renders it, less the last END."""
    return render_chat(*conversation(rng))


DOMAINS: dict[str, Callable[[random.Random], str]] = {
    "prose": prose,
    "code": code,
    "chat": chat,
    "language": language,
    "sums": sums,
}


def documents(domain: str, seed: str, n_chars: int, *, exclude: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """Documents of `domain` of at least `n_chars` characters together; none repeats, none is in `exclude`."""
    rng, size = random.Random(f"{seed}:{domain}"), 0
    found: dict[str, None] = {}
    while size < n_chars:
        text = DOMAINS[domain](rng)
        if text not in exclude and text not in found:
            found[text] = None
            size += len(text) + len(END)
    return tuple(found)


def split(domain: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The training documents of `domain` and its held-out ones, none of which is a training document."""
    trained = documents(domain, "train", TRAIN_CHARS)
    return trained, documents(domain, "eval", EVAL_CHARS, exclude=frozenset(trained))


def join(texts: tuple[str, ...]) -> str:
    """The documents as one text, each closed by END."""
    return "".join(text + END for text in texts)
