"""The sealed wire: who is there is proved, and whoever stands between can only break it."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.links.channel import NotAdmitted, Proved, Sealed, Self, answer, call
from mesh.links.wire import MemoryWire, Wire
from protocol.certificate import Certificate, issue
from protocol.keys import KeyKind, MeshId, NodeId, Signer

END = 2_000_000_000_000


def person(letter: str) -> tuple[MeshId, Self]:
    mesh, node = Signer(letter.encode() * 32, KeyKind.MESH), Signer(letter.upper().encode() * 32, KeyKind.NODE)
    paper = issue(mesh, Certificate(MeshId(mesh.public), NodeId(node.public), 0, END, ["speak"]))
    return MeshId(mesh.public), Self(node, paper)


ADA, BOB, EVE = person("a"), person("b"), person("e")
Ends = tuple[tuple[Sealed, Proved], tuple[Sealed, Proved]]


def everybody(_: Proved) -> None:
    return None


async def meet(dials: Wire, dialled: Wire, caller: Self = ADA[1], callee: Self = BOB[1], mesh: MeshId = BOB[0]) -> Ends:
    async with asyncio.TaskGroup() as group:
        one = group.create_task(call(dials, caller, mesh, b"secret"))
        other = group.create_task(answer(dialled, callee, everybody))
    return one.result(), other.result()


async def together(*work: Coroutine[Any, Any, object]) -> None:
    async with asyncio.TaskGroup() as group:
        for one in work:
            group.create_task(one)


def reason(raised: pytest.ExceptionInfo[BaseExceptionGroup[BaseException]]) -> str:
    error: BaseException = raised.value
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error)


async def test_both_know_who_is_there_and_talk() -> None:
    (one, bob), (other, ada) = await meet(*MemoryWire.pair())
    assert (bob.mesh, ada.mesh, ada.secret) == (BOB[0], ADA[0], b"secret")
    assert "secret" not in repr(ada)
    for text in (b"hello", b"", b"x" * 100_000):
        await one.send(text)
        assert await other.receive() == text
        await other.send(text)
        assert await one.receive() == text


async def test_nothing_that_is_said_can_be_seen_changed_repeated_or_left_out() -> None:
    ends = MemoryWire.pair()
    (one, _), (other, _) = await meet(*ends)
    sealed = [one.seal(b"first words"), one.seal(b"second words")]
    assert not any(b"words" in piece for piece in sealed)
    changed = bytearray(sealed[0])
    changed[5] ^= 1
    for wrong in (bytes(changed), sealed[1], b"", b"x"):
        with pytest.raises(NotAdmitted):
            other.open(wrong)
    assert other.open(sealed[0]) == b"first words"
    with pytest.raises(NotAdmitted):
        other.open(sealed[0])
    assert other.open(sealed[1]) == b"second words"


async def test_somebody_else_answers() -> None:
    with pytest.raises(ExceptionGroup) as raised:
        await meet(*MemoryWire.pair(), callee=EVE[1])
    assert "another mesh answered" in reason(raised)


async def test_a_certificate_without_its_key_proves_nothing() -> None:
    stolen = Self(EVE[1].signer, BOB[1].certificate)
    with pytest.raises(ExceptionGroup) as raised:
        await meet(*MemoryWire.pair(), callee=stolen)
    assert "does not hold the key" in reason(raised)
    with pytest.raises(ExceptionGroup) as raised:
        await meet(*MemoryWire.pair(), caller=Self(EVE[1].signer, ADA[1].certificate))
    assert "does not hold the key" in reason(raised)


async def test_who_stands_between_can_pass_on_nothing() -> None:
    """Eve answers Ada with her own fresh key and dials Bob: Bob's proof is not for the keys that Ada sees."""
    ada, eve_to_ada = MemoryWire.pair()
    eve_to_bob, bob = MemoryWire.pair()

    async def between() -> None:
        await eve_to_ada.receive()
        await eve_to_bob.send(b"\x09" + b"\x00" * 31)  # a fresh key of her own
        await eve_to_ada.send(await eve_to_bob.receive())

    with pytest.raises(ExceptionGroup):
        await together(call(ada, ADA[1], BOB[0]), answer(bob, BOB[1], everybody), between())


async def test_the_door_may_stay_closed() -> None:
    dials, dialled = MemoryWire.pair()
    with pytest.raises(ExceptionGroup) as raised:
        await together(call(dials, ADA[1], BOB[0]), answer(dialled, BOB[1], lambda who: f"not you, {who.mesh[:4]}"))
    assert f"not you, {ADA[0][:4]}" in reason(raised)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=300), min_size=2, max_size=3))
async def test_any_bytes_are_one_error(said: list[bytes]) -> None:
    """Whatever comes in place of a handshake, on either side."""
    for side in (lambda wire: call(wire, ADA[1], BOB[0]), lambda wire: answer(wire, BOB[1], everybody)):
        ours, theirs = MemoryWire.pair()
        for data in said:
            await theirs.send(data)
        with pytest.raises(NotAdmitted):
            await side(ours)
