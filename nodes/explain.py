"""Why an act was said, and who answered it or did not: from what the node has recorded, to words for a person."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mesh.entries import Entry, find
from mesh.store import Store
from mesh.words import LINE_LIMIT, plain
from nodes.control import shown
from nodes.layout import when
from nodes.models.base import Span, Turn
from nodes.records import GONE
from nodes.turns import Told, Turns
from protocol.husk import is_husk
from protocol.keys import MeshId, fingerprint

FIRST_SPANS: Final = 4  # of a prompt that are shown in short: who the em is
LAST_SPANS: Final = 8  # and what it answers
SPAN_CHARS: Final = 90  # of each, so that it fits on a line
HANG: Final = 10  # columns before what is told
QUOTE_CHARS: Final = 200  # of an act that is answered


@dataclass(frozen=True, slots=True)
class Why:
    """All that is known about an act.

    `said` is the act itself, None for a reply that was never said; `made` is the turn that it was made in, None for
    what no em of this node said; `led_to` are the turns that answer it, and `silent` tells who kept silent, by reason.
    """

    id: bytes
    said: Entry | None
    made: Told | None
    answered: Entry | None
    root: Entry | None
    led_to: Sequence[Told]
    silent: Mapping[str, Sequence[str]]


def why(store: Store, identity: bytes) -> Why:
    """Gather what is known about an act whose id is known here."""
    turns = Turns(store)
    about = turns.about(identity)
    made = next((told for told in about if told.taken.id == identity), None)
    led = store.rows("SELECT id FROM turns WHERE act = ? ORDER BY n", (identity,))
    said = find(store, identity)
    target = made.taken.act if made else said.act.refs[0] if said and said.act.refs else None
    return Why(
        id=identity,
        said=said,
        made=made,
        answered=find(store, target) if target else None,
        root=find(store, said.act.root) if said else None,
        led_to=[told for (one,) in led for told in turns.about(one)],
        silent=turns.silences(identity),
    )


def as_json(known: Why) -> dict[str, Any]:
    """For scripts: ids in hex, times in Unix milliseconds, prompts whole."""
    return {
        "id": known.id.hex(),
        "act": shown(known.said) if known.said else None,
        "made": _turn_json(known.made) if known.made else None,
        "answers": shown(known.answered) if known.answered else None,
        "root": shown(known.root) if known.root else None,
        "led_to": [_turn_json(told) for told in known.led_to],
        "silent": known.silent,
    }


def as_text(known: Why, own: MeshId | None, *, whole: bool = False, there: str = "") -> Iterator[str]:
    """For a person, line by line. Authors of meshes other than `own` are told apart. `whole`: all of the prompt.

    `there` is what a command needs behind it to find the home.
    """
    if known.said:
        yield f"{_who(known.said, own)}, in {known.said.basin}, {when(known.said.act.at_ms)}, {known.id.hex()}:"
        yield f"  {_words(known.said)}"
    if known.made:
        yield from _made(known.made, known.said)
    if known.answered:
        answered = known.answered
        verb = "said to" if known.said else "about"
        yield f"{verb:<9} {_who(answered, own)}: {_words(answered, QUOTE_CHARS)}"
        yield f"          {answered.act.id.hex()}"
    if known.said:
        yield from _chain(known.said, known.root, own)
    if known.made and known.made.prompt:
        yield from _whole(known.made.prompt) if whole else _short(known, there)
    elif known.made and known.made.forgotten:
        yield "prompt    forgotten: something that was in it has been taken back"
    elif known.made:
        yield "prompt    not kept: it was never made, or it is an old one"
    yield from _after(known)


def _turn_json(told: Told) -> dict[str, Any]:
    """A turn. `prompt_tokens` and the like are None where nothing was counted, `prompt` where none is kept."""
    taken, usage = told.taken, told.usage
    turns = [{"role": turn.role, "spans": [_span_json(span) for span in turn.spans]} for turn in told.prompt or ()]
    return {
        "id": taken.id.hex(),
        "em": taken.em,
        "rule": taken.rule,
        "state": told.state,
        "outcome": told.outcome,
        "decided_ms": taken.decided_ms,
        "ended_ms": told.ended_ms,
        "model": told.model,
        "prompt_tokens": usage.prompt if usage else None,
        "completion_tokens": usage.completion if usage else None,
        "cached_tokens": usage.cached if usage else None,
        "prompt": turns if told.prompt else None,
        "forgotten": told.forgotten,
    }


def _span_json(span: Span) -> dict[str, Any]:
    """A piece of a prompt; `pictures` are hashes, and only there where there are some."""
    hashes = [picture.sha256 for picture in span.pictures]
    return {"source": span.source, "text": span.text, **({"pictures": hashes} if hashes else {})}


def _made(told: Told, said: Entry | None) -> Iterator[str]:
    taken, usage = told.taken, told.usage
    if said is None:
        yield f"{taken.em}, in {taken.basin}, {when(taken.decided_ms)}, {taken.id.hex()}:"
        yield f"  {_ended(told)}"
    yield f"because   {plain(taken.rule)}"
    if told.model:
        cost = (
            f", {usage.prompt:,} tokens read ({usage.cached:,} cached), {usage.completion:,} written" if usage else ""
        )
        yield f"model     {plain(told.model)}{cost}"
    if told.ended_ms is not None:
        yield f"took      {(told.ended_ms - taken.decided_ms) / 1000:.2f} s from the decision to the end"


def _chain(said: Entry, root: Entry | None, own: MeshId | None) -> Iterator[str]:
    budget = said.act.budget
    begun = "begun with this" if said.act.is_root else f"begun by {_who(root, own) if root else 'somebody'}"
    left = f"{budget.hops} hops, {budget.acts} acts, {budget.tokens:,} tokens, until {when(budget.until_ms)}"
    yield f"chain     {begun} ({said.act.root.hex()}); left after this: {left}"


def _after(known: Why) -> Iterator[str]:
    if known.led_to or known.silent:
        yield ""
    for told in known.led_to:
        said = told.state == "spoken"
        yield f"{'answered' if said else 'silent':<9} {told.taken.em}: {plain(told.taken.rule)}" + (
            f"; {told.taken.id.hex()}" if said else f", but {_ended(told)}"
        )
    for reason, ems in known.silent.items():
        yield f"silent    {plain(', '.join(ems))}: {plain(reason)}"
    if known.said and not known.led_to and not known.silent:
        yield "nobody    of the ems here has decided anything about it; perhaps none listens"


def _ended(told: Told) -> str:
    if told.state == "decided":
        return "it is still writing"
    return "it answered" if told.state == "spoken" else plain(told.outcome or "it said nothing")


def _who(entry: Entry, own: MeshId | None) -> str:
    author = plain(entry.act.author)
    return author if own in {None, entry.mesh} else f"{author}~{fingerprint(entry.mesh)}"


def _short(known: Why, there: str) -> Iterator[str]:
    """A screenful: the beginning of the prompt, and its end."""
    prompt = known.made.prompt if known.made and known.made.prompt else ()
    spans = [span for turn in prompt for span in turn.spans]
    size = sum(len(span.text) for span in spans)
    yield f"prompt    {len(spans):,} pieces, {size:,} characters; all of it: mesh why {known.id.hex()} --prompt{there}"
    width = max(len(_source(span)) for span in spans)
    left_out = len(spans) - FIRST_SPANS - LAST_SPANS
    for number, span in enumerate(spans):
        if left_out > 0 and number == FIRST_SPANS:
            yield f"  {'…':<{width}}  … {left_out:,} pieces …"
        if left_out <= 0 or number < FIRST_SPANS or number >= FIRST_SPANS + left_out:
            yield f"  {_source(span):<{width}}  {plain(span.text, SPAN_CHARS)}"


def _whole(prompt: Sequence[Turn]) -> Iterator[str]:
    """Every character of the prompt, and beside every line where it came from."""
    width = max(len(_source(span)) for turn in prompt for span in turn.spans)
    for turn in prompt:
        yield f"prompt    {turn.role}"
        for span in turn.spans:
            source = _source(span)
            for line in span.text.removesuffix("\n").split("\n"):
                yield f"  {source:<{width}} | {_visible(line)}"
                source = ""
            for picture in span.pictures:
                yield f"  {source:<{width}} | (shown: sha256 {picture.sha256}, {picture.mime})"


def _words(entry: Entry, limit: int = LINE_LIMIT) -> str:
    return GONE if is_husk(entry.act) else plain(entry.act.text, limit)


def _source(span: Span) -> str:
    return plain(span.source, 60)


def _visible(line: str) -> str:
    """Nothing changed but what a terminal would act upon, which is written as in Python."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)
