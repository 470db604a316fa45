"""The bundled model's corpus: five domains of generated documents, from word lists and rules written for this project.

A document never holds a blank line: `"\n\n"` is the end-of-turn piece of the tokenizer and closes every document.
"""

from __future__ import annotations

import random
import re

END = "\n\n"  # closes a document, and every turn of a chat


def words(text: str) -> tuple[str, ...]:
    """The words of `text`, so that a list of them reads as one line."""
    return tuple(text.split())


LEXICON: dict[str, tuple[str, ...]] = {
    "name": words(
        "Mira Tobin Anselm Greta Oskar Lina Pavel Runa Edda Milo Sorrel Bram Ines Kaspar Thea Jorin Wanda Felix Nora"
    ),
    "place": words(
        "harbour market mill orchard bridge library bakery tower meadow station garden quarry chapel workshop barn"
    ),
    "thing": words(
        "lantern basket kettle rope clock ladder violin blanket hammer bottle mirror map drum saddle candle bucket key"
    ),
    "stuff": words("copper wool oak glass silver clay leather straw iron linen paper stone"),
    "adjective": words(
        "heavy old bright quiet broken narrow red golden empty warm wooden strange little heavy clean round blue dusty"
    ),
    "animal": words("fox heron goat mule cat otter raven hound hare owl mouse swan"),
    "season": words("winter spring summer autumn"),
    "weather": words("rain snow fog wind sunshine thunder frost hail"),
    "time": words("morning evening noon night dawn dusk"),
    "feeling": words("glad tired afraid proud hungry curious sorry calm angry lonely"),
    "food": words("bread soup apples cheese honey plums fish barley beans cake"),
    "craft": words("baker miller sailor weaver smith teacher shepherd painter farmer carpenter"),
    "verb": words("carried mended lost found sold hid borrowed painted washed dropped"),
    "moved": words("walked ran hurried climbed wandered went"),
    "town": words("Orla Bexhill Tamsin Corvale Duneth Marrow Fenwick Galby Hestin Ilmar Jurong Kelso"),
    "sky": words("rain snow fog clear cloudy storm"),
    "number": words("two three four five six seven eight nine ten"),
}

STORY = (
    "{a} was a {craft} who lived near the {p} with a {animal}.",
    "The {t} was made of {stuff} and it was very {adjective}.",
    "In the {time} there was {weather} over the {p}, so {a} waited at the {place}.",
    '"Where is my {t}?" asked {a}. "It is at the {p}," said {b}.',
    "{b} {verb} the {t} and gave it back to {a} before {time}.",
    "{a} {moved} from the {p} to the {place} with {number} {thing}s and some {food}.",
    "The {animal} slept beside the {t} while {a} and {b} ate {food}.",
    '"I am {feeling}," said {b}, "because the {animal} took my {food}."',
    "After the {weather}, {b} was {feeling} and {moved} home to the {place}.",
    "Nobody at the {p} had seen such a {adjective} {t} before.",
    "{a} thought that {b} was {feeling}, but {b} was only {feeling}.",
    "They {verb} the {adjective} {thing} and left it near the {p}.",
    "For {number} days {a} looked for the {t}, and on the last day {b} {verb} it.",
    '"Take the {t} to the {place}," said {a}, "and bring me {food} and {stuff}."',
    "When {season} came, the {p} was {adjective} and the {animal}s were gone.",
)
OPENING = (
    "In {season}, {a} {moved} to the {p} with a {adjective} {t}.",
    "One {time} in {season} {a} and {b} {moved} to the {p} to find a {t}.",
    "There was once a {adjective} {t} that belonged to {a}, the {craft} of the {p}.",
    "{a} the {craft} {verb} a {t} at the {p}, and {b} saw it.",
)
CLOSING = (
    "So {a} kept the {t}, and {b} was {feeling}.",
    "From that {time} on, {a} and {b} met at the {p} every {season}.",
    "And the {t} stayed at the {p}.",
)


def fill(template: str, rng: random.Random, slots: dict[str, str]) -> str:
    """`template` with each `{slot}` taken from `slots`, else drawn from the lexicon."""
    text = re.sub(r"\{(\w+)\}", lambda m: slots[m[1]] if m[1] in slots else rng.choice(LEXICON[m[1]]), template)
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)


def prose(rng: random.Random) -> str:
    """A story of four to eight sentences about two people, one thing and one place."""
    a, b = rng.sample(LEXICON["name"], 2)
    slots = {"a": a, "b": b, "t": rng.choice(LEXICON["thing"]), "p": rng.choice(LEXICON["place"])}
    plot = [rng.choice(OPENING), *rng.sample(STORY, rng.randint(3, 6)), rng.choice(CLOSING)]
    return " ".join(fill(sentence, rng, slots) for sentence in plot)


VARIABLES = words("total count value item result size index limit step score width level rate price weight")
FUNCTIONS = words(
    "scale add_up pick_best shift_all count_over join_names clamp average find_first double trim_list merge weigh rank"
)
LISTS = words("items values scores names rows prices sizes words")


def loop_function(rng: random.Random, name: str) -> list[str]:
    """Lines of a function that folds a list, and a call of it."""
    acc, item, bound = rng.sample(VARIABLES, 3)
    seq, k, start = rng.choice(LISTS), rng.randint(2, 9), rng.randint(0, 1)
    compare, sign = rng.choice(("<", ">", "==", "!=", ">=")), rng.choice(("+", "-", "*"))
    lines = [f"def {name}({seq}, {bound}):", f"    {acc} = {start}", f"    for {item} in {seq}:"]
    if rng.random() < 0.7:
        lines += [f"        if {item} {compare} {bound}:", f"            {acc} = {acc} {sign} {item}"]
        if rng.random() < 0.5:
            lines += ["        else:", f"            {acc} = {acc} {sign} {k}"]
    else:
        lines += [f"        {acc} = {acc} {sign} {item} * {k}"]
    numbers = ", ".join(str(rng.randint(1, 30)) for _ in range(rng.randint(2, 5)))
    return [*lines, f"    return {acc}", f"{seq} = [{numbers}]", f"print({name}({seq}, {rng.randint(1, 20)}))"]


def line_function(rng: random.Random, name: str) -> list[str]:
    """Lines of a linear function with assertions that hold."""
    x, y = rng.sample(VARIABLES, 2)
    a, b = rng.randint(2, 9), rng.randint(1, 9)
    lines = [
        f"def {name}({x}):",
        f'    """Return {a} times {x} plus {b}."""',
        f"    {y} = {x} * {a}",
        f"    return {y} + {b}",
    ]
    return lines + [f"assert {name}({n}) == {n * a + b}" for n in rng.sample(range(1, 10), rng.randint(1, 3))]


def record_class(rng: random.Random, name: str) -> list[str]:
    """Lines of a small class with a method that reads its fields."""
    fields = rng.sample(VARIABLES, rng.randint(2, 3))
    title = "".join(part.capitalize() for part in name.split("_"))
    lines = [
        f"class {title}:",
        f"    def __init__(self, {', '.join(fields)}):",
        *(f"        self.{f} = {f}" for f in fields),
    ]
    method, sign = rng.choice(FUNCTIONS), rng.choice(("+", "-", "*"))
    lines += [f"    def {method}(self):", f"        return self.{fields[0]} {sign} self.{fields[1]}"]
    return [*lines, f"{rng.choice(LISTS)} = [{title}({', '.join(str(rng.randint(1, 30)) for _ in fields)})]"]


def code(rng: random.Random) -> str:
    """One small program: a loop over a list, a linear function with assertions, or a class."""
    name = rng.choice(FUNCTIONS)
    kind = rng.choice((loop_function, loop_function, line_function, record_class))
    return "\n".join(kind(rng, name))


# The second language: subject, object, verb. Nouns carry case (-ka agent, -mi patient, -tu place) after the plural
# (-ri-); an adjective follows its noun and repeats the case; a verb carries tense before it and number after it.
# Vowel harmony: a stem whose last vowel is e or i turns every a of its endings into e.
ONSETS, VOWELS = "bdfghklmnprstvz", "aeiou"


def stems(seed: str, count: int, syllables: int) -> tuple[str, ...]:
    """`count` different stems of `syllables` open syllables, the same in every run."""
    rng, found = random.Random(seed), dict[str, None]()
    while len(found) < count:
        found["".join(rng.choice(ONSETS) + rng.choice(VOWELS) for _ in range(syllables))] = None
    return tuple(found)


NOUNS, VERBS, QUALITIES = stems("nouns", 60, 2), stems("verbs", 30, 2), stems("qualities", 24, 2)
TENSES, LINKS = ("sa", "no", "ulu"), ("vo", "zen", "hala")


def harmonize(stem: str, ending: str) -> str:
    return stem + (ending.replace("a", "e") if stem[-1] in "ei" else ending)


def phrase(rng: random.Random, nouns: list[str], case: str) -> tuple[str, bool]:
    """A noun phrase in `case`, and whether it is plural."""
    plural = rng.random() < 0.3
    ending = ("ri" if plural else "") + case
    text = harmonize(rng.choice(nouns), ending)
    if rng.random() < 0.4:
        text += " " + harmonize(rng.choice(QUALITIES), ending)
    return text, plural


def language(rng: random.Random) -> str:
    """A text of five to nine sentences about five nouns and three verbs."""
    nouns, verbs, tense = rng.sample(NOUNS, 5), rng.sample(VERBS, 3), rng.choice(TENSES)
    sentences = []
    for position in range(rng.randint(5, 9)):
        agent, plural = phrase(rng, nouns, "ka")
        parts = [agent, phrase(rng, nouns, "mi")[0]]
        if rng.random() < 0.4:
            parts.insert(rng.randint(0, 1), phrase(rng, nouns, "tu")[0])
        parts.append(tense + harmonize(rng.choice(verbs), "nal" if plural else "na"))
        if position and rng.random() < 0.3:
            parts.insert(0, rng.choice(LINKS))
        sentences.append(" ".join(parts) + ".")
    return " ".join(sentences)


COLUMNS = ("ones", "tens", "hundreds")


def sums(rng: random.Random) -> str:
    """One addition of two numbers of three digits, worked column by column."""
    a, b = rng.randint(100, 999), rng.randint(100, 999)
    who, other = rng.sample(LEXICON["name"], 2)
    what = rng.choice(LEXICON["thing"])
    ask = rng.choice(
        (
            f"add {a} and {b}.",
            f"{who} has {a} {what}s and {other} has {b} {what}s. how many is that?",
            f"{who} had {a} {what}s and found {b} more. how many now?",
        )
    )
    lines, carry = [ask, f"{a} + {b}"], 0
    for column, name in enumerate(COLUMNS):
        p, q = a // 10**column % 10, b // 10**column % 10
        total = p + q + carry
        lines.append(f"{name}: {p} + {q} + {carry} = {total}, write {total % 10}, carry {total // 10}")
        carry = total // 10
    return "\n".join([*lines, f"answer: {a + b}"])
