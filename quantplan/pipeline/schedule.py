"""The order of a build as a value: what is made, compared, published and dropped, and in which order.

The runner follows this list and `disk` adds up sizes along the same list: the promise and the work cannot differ.
Names of files on the list are keys, not file names: "digests", "converted", "mmproj", "imatrix", a preset,
"<preset> split", "logits <preset> <text>" with the reference under "logits reference <text>".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

SOURCE = "source"
DIGESTS = "digests"  # the hashes of a source's tensors, where its weights are read from the hub and not kept
READ_SOURCE = "read source"
CONVERTED = "converted"
MMPROJ = "mmproj"
IMATRIX = "imatrix"
REFERENCE = "reference"


class Kind(Enum):
    """What an action does."""

    MAKE = "make"  # a step: one file from others
    COMPARE = "compare"  # two files of log-probabilities become a few numbers
    PUBLISH = "publish"  # the artifact folder, linked from what is there
    DROP = "drop"  # a file that nothing later needs


class Order(Enum):
    """How the work is ordered."""

    KEEP = "keep"  # everything stays until the end
    BY_TEXT = "by text"  # dropped when no longer needed; all presets, then one text after the other
    BY_QUANT = "by quant"  # dropped when no longer needed; all reference scores, then one preset after the other


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One entry of the schedule. `makes` and `needs` are keys of files; `subject` is a preset, `text` a text."""

    kind: Kind
    name: str
    makes: str | None = None
    needs: tuple[str, ...] = ()
    subject: str | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a build is asked for. `quants` may name `converted_as`: then the converted file is an artifact itself."""

    quants: tuple[str, ...]
    baseline: str | None  # scored too, since limits are set by it
    texts: tuple[str, ...]
    converted_as: str = "BF16"
    mmproj: bool = False
    imatrix: bool = False  # the presets asked for are made with one
    imatrix_is_given: bool = False  # it is there already, not made from a calibration text
    split: bool = False
    source_is_ours: bool = False  # downloaded for this build: may be dropped after the conversion
    remote: bool = False  # the weights are read from the hub: proved first, then once more for each conversion

    @property
    def measured(self) -> tuple[str, ...]:
        """Every quantized preset that is scored, the baseline first."""
        wanted = (*([self.baseline] if self.baseline and self.texts else []), *self.quants)
        return tuple(dict.fromkeys(quant for quant in wanted if quant != self.converted_as))


def logits_key(subject: str, text: str) -> str:
    """The key of a file of log-probabilities."""
    return f"logits {subject} {text}"


def model_key(work: Work, quant: str) -> str:
    """The key of the file that is served for a preset."""
    whole = CONVERTED if quant == work.converted_as else quant
    return f"{whole} split" if work.split and quant in work.quants else whole


def schedule(work: Work, order: Order) -> tuple[Action, ...]:
    """The actions of a build in order. Files are dropped after the last action that needs them, except with KEEP,
    where log-probabilities alone are: they are of no use later and large."""
    makers = {Order.KEEP: _by_text, Order.BY_TEXT: _by_text, Order.BY_QUANT: _by_quant}
    actions = [*_first(work), *makers[order](work)]
    return tuple(_with_drops(actions, work, keep=order is Order.KEEP))


def _make(name: str, makes: str, *needs: str, subject: str | None = None, text: str | None = None) -> Action:
    return Action(kind=Kind.MAKE, name=name, makes=makes, needs=needs, subject=subject, text=text)


def _first(work: Work) -> Iterator[Action]:
    source = (SOURCE, DIGESTS) if work.remote else (SOURCE,)
    if work.remote:
        yield _make(READ_SOURCE, DIGESTS, SOURCE)
    yield _make("convert", CONVERTED, *source)
    if work.mmproj:
        yield _make("convert mmproj", MMPROJ, *source)
    if work.imatrix and not work.imatrix_is_given:
        yield _make("imatrix", IMATRIX, CONVERTED)


def _quantize(work: Work, quant: str) -> Iterator[Action]:
    if quant != work.converted_as:
        needs = (CONVERTED, *([IMATRIX] if work.imatrix and quant in work.quants else []))
        yield _make(f"quantize {quant}", quant, *needs, subject=quant)
    if work.split and quant in work.quants:
        whole = CONVERTED if quant == work.converted_as else quant
        yield _make(f"split {quant}", f"{whole} split", whole, subject=quant)


def _reference(work: Work, text: str) -> Action:
    name = f"evaluate {work.converted_as} on {text}"
    return _make(name, logits_key(REFERENCE, text), CONVERTED, subject=REFERENCE, text=text)


def _score(work: Work, quant: str, text: str) -> Iterator[Action]:
    own, base = logits_key(quant, text), logits_key(REFERENCE, text)
    if quant == work.converted_as:
        own = base
    else:
        yield _make(f"evaluate {quant} on {text}", own, model_key(work, quant), subject=quant, text=text)
    yield Action(
        kind=Kind.COMPARE, name=f"compare {quant} on {text}", needs=tuple(dict.fromkeys((base, own))), subject=quant,
        text=text,
    )  # fmt: skip


def _publish(work: Work, quant: str) -> Action:
    needs = (model_key(work, quant), *([MMPROJ] if work.mmproj else []))
    return Action(kind=Kind.PUBLISH, name=f"publish {quant}", needs=needs, subject=quant)


def _scored(work: Work) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*work.measured, *work.quants)))


def _by_text(work: Work) -> Iterator[Action]:
    for quant in _scored(work):
        yield from _quantize(work, quant)
    for text in work.texts:
        yield _reference(work, text)
        for quant in _scored(work):
            yield from _score(work, quant, text)
    for quant in work.quants:
        yield _publish(work, quant)


def _by_quant(work: Work) -> Iterator[Action]:
    for text in work.texts:
        yield _reference(work, text)
    for quant in _scored(work):
        yield from _quantize(work, quant)
        for text in work.texts:
            yield from _score(work, quant, text)
        if quant in work.quants:
            yield _publish(work, quant)


def _with_drops(actions: list[Action], work: Work, *, keep: bool) -> Iterator[Action]:
    """Each action, and after it a drop of every file that it was the last to need."""
    last = {key: at for at, action in enumerate(actions) for key in action.needs}
    published = {key for action in actions if action.kind is Kind.PUBLISH for key in action.needs}
    for at, action in enumerate(actions):
        yield action
        for key in action.needs:
            if last[key] == at and _may_go(key, work, published=key in published, keep=keep):
                yield Action(kind=Kind.DROP, name=f"drop {key}", needs=(key,))


def _may_go(key: str, work: Work, *, published: bool, keep: bool) -> bool:
    if key.startswith("logits "):
        return True
    if keep or published or key == DIGESTS:  # they are small, and took a reading of everything
        return False
    return work.source_is_ours if key == SOURCE else True
