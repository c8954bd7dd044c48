"""What one peer can make of what a link keeps: gaps and certificates without end, much that is not for it."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from sides import NOW, sides, until_heard

from mesh.links import papers
from mesh.links.messages import MAX_FRAMES, Gone, Missing, Papers, Said
from mesh.links.papers import learn
from mesh.links.pieces import Joining
from mesh.links.receiving import ASKED, LOOKED_AT, Receiving
from mesh.links.sending import SPAN, Sending
from mesh.links.session import Session
from mesh.links.wire import MemoryWire, WireBroken
from protocol.certificate import Certificate, issue
from protocol.keys import KeyKind, MeshId, NodeId, Signer


class Wrote:
    """What was said over a link that nobody reads."""

    def __init__(self) -> None:
        self.said = list[Said]()

    async def say(self, message: Said) -> None:
        self.said.append(message)


async def test_any_number_of_gaps_is_asked_for_a_few_at_a_time_and_read_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever counts 2, 4, 6 makes a gap of every act; one beat must not read all of them."""
    async with sides(tmp_path) as (a, b):
        b.taken = {"tea"}
        wrote = Wrote()
        receiving = Receiving(a.mesh, b.ground, wrote.say)
        await receiving.ask()
        with b.store.transaction():
            b.store.execute("INSERT INTO origins VALUES (7, ?, ?)", (a.mesh, a.node.public))
            gaps = [(7, "tea", 2 * number, 2 * number) for number in range(1, 2 * LOOKED_AT + 11)]
            b.store.many("INSERT INTO gaps VALUES (?, ?, ?, ?)", gaps)
        read, rows = list[int](), b.store.rows

        def counting(sql: str, values: Sequence[object] = ()) -> list[Any]:
            found = rows(sql, values)
            read.append(len(found))
            return found

        monkeypatch.setattr(b.store, "rows", counting)
        for beat in range(1, 2 * len(gaps)):
            receiving.look()
            await receiving.ask()
            assert len(wrote.said) <= beat * ASKED
        assert max(read) == LOOKED_AT
        asked = [one.first for one in wrote.said if isinstance(one, Missing)]
        assert sorted(asked) == [first for _, _, first, _ in gaps], "each once, whatever their number"


async def test_what_is_not_for_a_peer_is_passed_over_while_others_go_on(tmp_path: Path) -> None:
    """A guest who comes late to a basin of many years keeps nobody waiting while its node looks for what is theirs."""
    async with sides(tmp_path) as (a, b):
        number = 12 * MAX_FRAMES
        await a.say("tea", *["not for you"] * number)
        await until_heard(a, "tea", ["not for you"] * number)
        a.gives = {"tea": 0}
        wrote, turns = Wrote(), 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as group:
            task = group.create_task(others())
            await asyncio.sleep(0)
            before = turns
            await Sending(b.mesh, a.ground, wrote.say).send()
            met = turns - before
            task.cancel()
        assert wrote.said == []
        assert met >= number // MAX_FRAMES


async def test_frames_that_are_missed_are_found_behind_any_number_of_others(tmp_path: Path) -> None:
    """Others' frames between them are passed over in parts, and the answer ends with what there is no more of."""
    async with sides(tmp_path) as (a, b):
        await a.say("tea", "first", "second")
        await until_heard(a, "tea", ["first", "second"])
        with a.store.transaction():
            a.store.execute("UPDATE frames SET n = n + ?", (3 * SPAN,))
        a.gives = {"tea": 0}
        wrote = Wrote()
        sending = Sending(b.mesh, a.ground, wrote.say)
        wanted = Missing(a.mesh, a.node.public, "tea", 1, 9)
        sending.missing(wanted)
        sending._ahead["tea"] = 9 * SPAN
        sending._since["tea"] = 0
        await sending.send()
        *frames, last = wrote.said
        assert [len(getattr(one, "frames", ())) for one in frames] == [2]
        assert last == Gone(a.mesh, a.node.public, "tea", 1, 9)


async def test_a_slip_of_a_part_with_what_a_peer_says_ends_neither_the_link_nor_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sides(tmp_path) as (a, b):
        a.gives, b.taken = {"tea": 0}, {"tea"}

        def slips(_peer: str, _topic: str, _data: bytes) -> None:
            raise KeyError("nobody thought of that")

        monkeypatch.setattr(b, "matter", slips)
        ends = MemoryWire.pair()
        sessions = [Session(b.mesh, ends[0], a.ground), Session(a.mesh, ends[1], b.ground)]
        a.sessions, b.sessions = sessions[:1], sessions[1:]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(session.run()) for session in sessions]
            assert sessions[0].tell("card", b"?")
            await a.say("tea", "still here")
            await until_heard(b, "tea", ["still here"])
            for task in tasks:
                task.cancel()
        assert b.store.rows("SELECT reason, times FROM refusals") == [("KeyError", 1)]


def strangers(letter: str, number: int) -> Papers:
    """A certificate of each of so many meshes that nobody here knows."""
    made = list[bytes]()
    for one in range(number):
        key = Signer(f"{letter}{one}".encode().rjust(32, b"k"), KeyKind.MESH)
        node = Signer(f"{letter}{one}".encode().rjust(32, b"n"), KeyKind.NODE)
        made.append(issue(key, Certificate(MeshId(key.public), NodeId(node.public), 0, 2 * NOW, ["speak"])))
    return Papers(made, [])


async def test_one_peer_does_not_fill_the_room_for_the_certificates_that_all_bring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(papers, "MAX_BROUGHT", 10)
    async with sides(tmp_path) as (a, b):
        bad = strangers("x", 14)
        assert learn(b.ground, a.mesh, bad) == 4
        assert learn(b.ground, a.mesh, bad) == 4, "those that are known are no more"
        assert learn(b.ground, MeshId("another peer"), strangers("y", 5)) == 0


def test_pieces_that_hold_nothing_are_no_pieces() -> None:
    """They would not count towards the longest message, however many came."""
    with pytest.raises(WireBroken):
        Joining().add(b"\1")
    assert Joining().add(b"\0") == b""
