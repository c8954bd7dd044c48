"""What people ask of the node in a room, done: each command gives acts, an answer, or both."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec

from mesh.bridges.matrix.inbox import Inbound
from mesh.bridges.matrix.reading import Heard
from mesh.entries import find
from nodes.chains import STOPPED
from nodes.layout import counted
from nodes.matrix import house
from nodes.matrix.inward import Inward, Scene
from nodes.matrix.page import Pages
from nodes.matrix.settings import Matrix
from nodes.matrix.tables import Tables
from nodes.node import Node
from protocol.acts import Act, ActId

Party = Callable[[str, str, str, str], tuple[list[ActId], dict[str, Any]] | str]
"""What an act in a dispute refers to and says, asked for with `!mesh`: by whom, in which basin, which kind and text.

A sentence where it would not count.
"""


class Steward:
    """Obeys people. `party` knows the disputes whose rooms these may be."""

    def __init__(self, node: Node, inward: Inward, tables: Tables, settings: Matrix, pages: Pages | None) -> None:
        self._node, self._inward, self._tables, self._settings, self._pages = node, inward, tables, settings, pages
        self.party: Party = _no_party

    def obey(self, event: Inbound, heard: Heard, asked: house.Asked | str, scene: Scene) -> tuple[list[Act], str]:
        """The acts of a command, and the answer to it; a sentence about one that is none is the answer."""
        if isinstance(asked, str):
            return [], asked
        em, store = house.named(asked.words, scene), self._node.ground.store
        match asked.verb:
            case "stop":
                return [self._inward.command(event, "cancel", {"text": STOPPED}, scene)], "Stopped."
            case "next":
                return self._next(event, asked, em, scene)
            case "mute" | "unmute":
                return [], self._mute(asked, house.named(asked.words, self._heard_in(scene)), scene)
            case "why":
                known = self._tables.event(heard.reply_to) if heard.reply_to else None
                known = known if known and known.room == event.room else None
                return [], house.reason(store, find(store, known.act) if known else None, self._pages)
            case "budget":
                return [], house.budget(store, self._node.runtime.chains, scene)
            case "respond" | "remedy" | "settle" | "withdraw":
                said = self.party(event.sender, scene.basin, asked.verb, " ".join(asked.words))
                if isinstance(said, str):
                    return [], said
                act = self._inward.command(event, asked.verb, said[1], scene)
                return [msgspec.structs.replace(act, author=self._node.config.human, refs=said[0])], "Said."
            case "help":
                return [], house.HELP.format(**self._settings.controls.model_dump())

    def _heard_in(self, scene: Scene) -> Scene:
        """A scene with those as well whose words are told there, though they do not sit there, or would be unmuted."""
        room = self._node.runtime.rooms.get(scene.basin)
        told = room.roster.ems.keys() if room else set[str]()
        muted = {em for em, basin in self._tables.mutes(scene.now_ms) if basin == scene.basin}
        return replace(scene, ems=scene.ems | told | muted)

    def _mute(self, asked: house.Asked, em: str | None, scene: Scene) -> str:
        """Have an em keep silent, or speak again."""
        if em is None:
            return _whom(scene)
        span = house.minutes(asked.words) if asked.verb == "mute" else 0
        self._tables.mute(scene.basin, em, scene.now_ms + span * house.MINUTE_MS)
        return f"{em} keeps silent for {counted(span, 'minute')}." if span else f"{em} may speak."

    def _next(self, event: Inbound, asked: house.Asked, em: str | None, scene: Scene) -> tuple[list[Act], str]:
        """Have an em say something: the one that was named, or the one that has been silent longest."""
        if asked.words and em is None:
            return [], _whom(scene)
        chosen = em or house.next_speaker(self._node.ground.store, scene)
        if chosen is None or not self._inward.has_turns(event, scene):
            return [], "No em sits here." if chosen is None else "That is enough for this minute."
        return [self._inward.command(event, "ask", {"text": "…", "to": [chosen]}, scene)], ""


def _whom(scene: Scene) -> str:
    return f"Whom? Here are {', '.join(sorted(scene.ems)) or 'no ems'}."


def _no_party(user: str, basin: str, kind: str, text: str) -> str:  # noqa: ARG001 - a Party's
    return "This room is not that of a dispute."
