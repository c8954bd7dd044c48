"""`!mesh` in a room: what people may ask of the node itself, and what it answers."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from mesh.entries import Entry, find, recent
from mesh.store import Store
from mesh.words import plain
from nodes.chains import Chains
from nodes.explain import why
from nodes.matrix.inward import Scene
from nodes.matrix.page import Pages
from nodes.models.answers import SAYS

CALL: Final = "!mesh"
Verb = Literal["help", "stop", "next", "mute", "unmute", "why", "budget", "respond", "remedy", "settle", "withdraw"]
LOOKED_AT: Final = 200  # acts of a basin in which the last speakers are looked for
MUTE_MINUTES: Final = 60
MAX_MUTE_MINUTES: Final = 7 * 24 * 60
MINUTE_MS: Final = 60_000
_NO_MARKDOWN: Final = str.maketrans("[]<>`*_", "()()'  ")
HELP: Final = """\
**!mesh stop** ends everything that is being written here
**!mesh next** [EM] has somebody say something
**!mesh mute** EM [MINUTES] and **!mesh unmute** EM
**!mesh why**, as a reply to a message: why it was said, or why nobody answered
**!mesh budget** tells what the talk may still cost
**!mesh respond**, **remedy**, **settle** or **withdraw** TEXT, by the node's person where the room is a dispute's
Reactions: {stop} stop, {retry} try again, {hide} hide from the ems, {go_on} go on"""


@dataclass(frozen=True, slots=True)
class Asked:
    """A command, with its words."""

    verb: Verb
    words: tuple[str, ...]


def command(text: str) -> Asked | str | None:
    """The command in a message; a sentence for one that does not exist, None for ordinary words. Total."""
    first, *words = text.split() or [""]
    if first.lower() != CALL:
        return None
    verb = words[0].lower() if words else "help"
    match verb:
        case "help" | "stop" | "next" | "mute" | "unmute" | "why" | "budget":
            return Asked(verb, tuple(words[1:]))
        case "respond" | "remedy" | "settle" | "withdraw":
            return Asked(verb, tuple(words[1:]))
        case _:
            return (
                f"There is no `{plain(verb, 30).replace('`', '')}`; there are help, stop, next, mute, why and budget."
            )


def named(words: Iterable[str], scene: Scene) -> str | None:
    """The first em of the room that the words name."""
    ems = scene.ems
    return next((word.lower().removeprefix("@") for word in words if word.lower().removeprefix("@") in ems), None)


def minutes(words: Iterable[str]) -> int:
    """The first number among the words, as minutes within bounds."""
    number = next((word for word in words if word.isascii() and word.isdecimal()), str(MUTE_MINUTES))
    return min(int(number[:9]), MAX_MUTE_MINUTES)


def next_speaker(store: Store, scene: Scene) -> str | None:
    """The em of a room that has been silent longest."""
    spoke = [entry.act.author for entry in recent(store, scene.basin, LOOKED_AT)]
    last = {author: place for place, author in enumerate(spoke)}
    return min(sorted(scene.ems), key=lambda em: last.get(em, -1), default=None)


def budget(store: Store, chains: Chains, scene: Scene) -> str:
    """What the last chain of a basin may still use."""
    last = next((entry for entry in reversed(recent(store, scene.basin, 1))), None)
    minted = scene.minted
    begins = (
        f"A message begins with {minted.hops} hops, {minted.acts} acts, {minted.tokens:,} tokens and"
        f" {minted.minutes:g} minutes."
    )
    if last is None:
        return begins
    spent = chains.spent(last.act, scene.now_ms)
    root = find(store, last.act.root)
    acts, tokens = chains.used(last.act.root)
    limit = root.act.budget if root else last.act.budget
    left = f"{max(0, limit.acts - acts)} of {limit.acts} acts and {max(0, limit.tokens - tokens):,} tokens are left"
    return f"{begins}\nThe last talk: {left}{f'; it is over: {spent}' if spent else ''}."


def reason(store: Store, about: Entry | None, pages: Pages | None) -> str:
    """Why an act was said, or who answered it and who did not. The prompt is behind a link, if there are pages."""
    if about is None:
        return "Write it as a reply to a message of which you want to know."
    known = why(store, about.act.id)
    lines = list[str]()
    if known.made:
        told = known.made
        usage = told.usage
        cost = f", {usage.prompt:,} tokens read and {usage.completion:,} written" if usage else ""
        lines.append(
            f"**{told.taken.em}** spoke because {_told(told.taken.rule)}; model {_told(told.model or '-')}{cost}."
        )
    for told in known.led_to:
        outcome = "answered" if told.state == "spoken" else _told(told.outcome or "is still to answer")
        lines.append(f"**{told.taken.em}** ({_told(told.taken.rule)}): {outcome}.")
    lines += [f"{', '.join(ems)}: silent, {_told(rule)}." for rule, ems in sorted(known.silent.items())]
    if pages:
        lines.append(f"[All of it, with the prompt]({pages.link(about.act.id)})")
    else:
        lines.append(f"The whole prompt, for the node's person: `mesh why {about.act.id.hex()}`")
    return "\n".join(lines)


def _told(text: str) -> str:
    """A reason as everybody in a room may read it: without what a vendor said, and with no Markdown in it."""
    return plain(text.partition(SAYS)[0].translate(_NO_MARKDOWN))
