"""Keys of encrypted rooms, without a homeserver: what devices exchange, what is refused, and how keys are kept."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh.bridges.matrix import sealed as sealed_module
from mesh.bridges.matrix.api import Access, Api
from mesh.bridges.matrix.content import edit, message, size
from mesh.bridges.matrix.crosssigning import SigningKeys, canonical, is_signed
from mesh.bridges.matrix.crypto import shorter
from mesh.bridges.matrix.engine import MEGOLM, Engine
from mesh.bridges.matrix.errors import MatrixError, MatrixUnavailable
from mesh.bridges.matrix.inbox import SEALED, Inbound
from mesh.bridges.matrix.schema import MATRIX_SCHEMA
from mesh.bridges.matrix.sealed import Sealed
from mesh.bridges.matrix.vault import Vault, has_vault, users
from mesh.store import Store

ROOM = "!r:x"
ADA, EVE, MARA = "@ada:x", "@eve:x", "@mara:x"
PEOPLE = (ADA, EVE, MARA)
WORDS = {"msgtype": "m.text", "body": "hello", "m.relates_to": {"m.in_reply_to": {"event_id": "$e"}}}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


class World:
    """Some devices, and in place of a homeserver what they have published."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.engines = dict[str, Engine]()
        self.one_time = dict[str, dict[str, Any]]()
        self.wanted = set[tuple[str, str]]()
        for user in PEOPLE:
            self.open(user)
            self.publish(user)
        for user in PEOPLE:
            self.engines[user].learn({"device_keys": {one: {"D" + one[1]: self.keys(one)} for one in PEOPLE}})

    def open(self, user: str) -> Engine:
        """A user's device, from its file."""
        path = self._folder / f"{user}.db"
        self.engines[user] = Engine(user, "D" + user[1], path, lambda room, session: (room, session) in self.wanted)
        return self.engines[user]

    def keys(self, user: str) -> dict[str, Any]:
        return self.engines[user].device_keys()

    def publish(self, user: str) -> None:
        body = self.engines[user].upload(0, fallback=False)
        assert body
        self.one_time[user] = body["one_time_keys"] | body["fallback_keys"]
        self.engines[user].uploaded(len(body["one_time_keys"]))

    def share(self, sender: str, *people: str) -> dict[str, dict[str, Any]]:
        """The to-device events by user that bring the key of the room; nobody has taken them yet."""
        engine, found = self.engines[sender], dict[str, dict[str, Any]]()
        answer = dict[str, Any]()
        for user, devices in engine.missing(people).items():
            name = next(iter(self.one_time[user]))
            answer[user] = {device: {name: self.one_time[user].pop(name)} for device in devices}
        engine.claimed({"one_time_keys": answer})
        for body in engine.share(ROOM, people):
            for user, devices in body["messages"].items():
                found[user] = self.event(sender, devices["D" + user[1]])
        return found

    def event(self, sender: str, content: Any) -> dict[str, Any]:
        return {"type": "m.room.encrypted", "sender": sender, "content": content}

    def close(self) -> None:
        for engine in self.engines.values():
            engine.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with closing(World(tmp_path)) as one:
        yield one


def test_devices_share_a_key_and_open_what_it_sealed(world: World) -> None:
    """Whoever got the room's key reads the words; the relation travels outside them, and others read nothing."""
    shared = world.share(ADA, MARA)
    (key,) = world.engines[MARA].receive([shared[MARA]])
    sealed = world.engines[ADA].seal(ROOM, "m.room.message", WORDS)
    assert key == (ROOM, sealed["session_id"])
    assert sealed["m.relates_to"] == WORDS["m.relates_to"]
    assert "hello" not in str(sealed)
    assert world.engines[MARA].open(ROOM, ADA, sealed) == ("m.room.message", WORDS, 0)
    assert world.engines[EVE].open(ROOM, ADA, sealed) is None
    bare = {name: value for name, value in sealed.items() if name not in {"sender_key", "device_id"}}
    assert world.engines[MARA].open(ROOM, ADA, bare) == ("m.room.message", WORDS, 0)


def test_keys_outlive_the_process(world: World) -> None:
    """After a restart the device is the same, and what it could open it still can."""
    shared = world.share(ADA, MARA)
    world.engines[MARA].receive([shared[MARA]])
    sealed, before = world.engines[ADA].seal(ROOM, "m.room.message", WORDS), world.keys(MARA)
    world.engines[MARA].close()
    again = world.open(MARA)
    assert again.published
    assert again.is_mine(before)
    assert again.open(ROOM, ADA, sealed) == ("m.room.message", WORDS, 0)


def test_a_renewed_key_is_not_for_who_had_the_old_one(world: World) -> None:
    """After renewing, those without the new key read nothing more."""
    shared = world.share(ADA, MARA, EVE)
    for user in (MARA, EVE):
        world.engines[user].receive([shared[user]])
    assert not world.engines[ADA].must_share(ROOM)
    world.engines[ADA].renew(ROOM)
    assert world.engines[ADA].must_share(ROOM)
    world.engines[MARA].receive([world.share(ADA, MARA)[MARA]])
    sealed = world.engines[ADA].seal(ROOM, "m.room.message", WORDS)
    assert world.engines[MARA].open(ROOM, ADA, sealed)
    assert world.engines[EVE].open(ROOM, ADA, sealed) is None


def forwarded(world: World, giver: str, maker: str) -> dict[str, Any]:
    """The key of the room that `maker` made, forwarded by `giver` to Mara."""
    olm = world.engines[giver]._olm
    world.share(giver, MARA)  # for a session between the two
    device = olm.device_store[MARA]["Dm"]
    maker_key = world.keys(maker)["keys"]["curve25519:D" + maker[1]]
    (group,) = [one for one in olm.inbound_group_store if one.sender_key == maker_key]
    session = olm.session_store.get(device.curve25519)
    return world.event(giver, olm._encrypt_forwarding_key(ROOM, group, session, device).content)


def test_a_forwarded_key_counts_if_it_was_asked_for_and_comes_from_its_maker(world: World) -> None:
    """Keys that nobody asked for, and others' keys, are not taken."""
    shared = world.share(ADA, EVE)
    world.engines[EVE].receive([shared[EVE]])
    sealed = world.engines[ADA].seal(ROOM, "m.room.message", WORDS)
    world.wanted.add((ROOM, sealed["session_id"]))
    assert world.engines[MARA].receive([forwarded(world, EVE, ADA)]) == []
    assert world.engines[MARA].open(ROOM, ADA, sealed) is None
    world.wanted.clear()
    world.engines[ADA]._olm.outbound_group_sessions[ROOM].users_shared_with.clear()
    olm = world.engines[ADA]._olm
    (group,) = [one for one in olm.inbound_group_store if one.id == sealed["session_id"]]
    world.engines[ADA].claimed({"one_time_keys": {MARA: {"Dm": dict([world.one_time[MARA].popitem()])}}})
    device = olm.device_store[MARA]["Dm"]

    def gift() -> dict[str, Any]:
        session = olm.session_store.get(device.curve25519)
        return world.event(ADA, olm._encrypt_forwarding_key(ROOM, group, session, device).content)

    assert world.engines[MARA].receive([gift()]) == []
    world.wanted.add((ROOM, sealed["session_id"]))
    assert world.engines[MARA].receive([gift()]) == [(ROOM, sealed["session_id"])]
    assert world.engines[MARA].open(ROOM, ADA, sealed) == ("m.room.message", WORDS, 0)


def test_nobody_speaks_with_anothers_device(world: World) -> None:
    """An event whose session a device of somebody else made is not opened under the claimed sender's name."""
    shared = world.share(ADA, MARA)
    world.engines[MARA].receive([shared[MARA]])
    sealed = world.engines[ADA].seal(ROOM, "m.room.message", WORDS)
    assert world.engines[MARA].open(ROOM, EVE, sealed) is None
    assert world.engines[MARA].open("!other:x", ADA, sealed) is None


@pytest.mark.parametrize("kind", ["m.room.member", "m.room.redaction", "m.room.encrypted", "m.room.name"])
def test_what_changes_rooms_is_not_taken_from_inside(world: World, kind: str) -> None:
    shared = world.share(ADA, MARA)
    world.engines[MARA].receive([shared[MARA]])
    assert world.engines[MARA].open(ROOM, ADA, world.engines[ADA].seal(ROOM, kind, {"membership": "ban"})) is None


def test_keys_that_never_arrived_are_brought_again(tmp_path: Path) -> None:
    """A failed upload is repeated with the same keys, also after a restart; a good one leaves nothing to bring."""

    def engine() -> Engine:
        return Engine(ADA, "D", tmp_path / "keys.db", lambda _room, _session: False)

    one = engine()
    first = one.upload(0, fallback=True)
    one.close()
    again = engine()
    second = again.upload(0, fallback=True)
    assert first
    assert second
    assert len(first["one_time_keys"]) == 50
    assert second["one_time_keys"].keys() == first["one_time_keys"].keys()
    again.uploaded(50)
    assert again.upload(50, fallback=True) is None
    lacking = again.upload(20, fallback=True)
    assert lacking
    assert "device_keys" not in lacking
    assert len(lacking["one_time_keys"]) == 30
    assert not lacking["one_time_keys"].keys() & first["one_time_keys"].keys()
    again.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(value=json_values)
def test_nonsense_between_devices_is_dropped(world: World, value: Any) -> None:
    """Whatever a homeserver passes on, nothing breaks and no key comes of it."""
    engine = world.engines[MARA]
    mine = world.keys(MARA)["keys"]["curve25519:Dm"]
    contents = (
        value,
        {"algorithm": "m.olm.v1.curve25519-aes-sha2", "sender_key": value, "ciphertext": {mine: value}},
        {
            "algorithm": "m.olm.v1.curve25519-aes-sha2",
            "sender_key": "x",
            "ciphertext": {mine: {"type": 0, "body": "AA"}},
        },
    )
    events = [value, *({"type": "m.room.encrypted", "sender": ADA, "content": content} for content in contents)]
    assert engine.receive(events) == []
    engine.learn({"device_keys": {ADA: value, EVE: {"X": value}}})
    engine.learn({"device_keys": value})
    engine.claimed({"one_time_keys": {ADA: value, EVE: {"De": value}}})
    assert engine.open(ROOM, ADA, {"algorithm": MEGOLM, "session_id": value, "ciphertext": value}) is None
    assert world.keys(ADA)["user_id"] == ADA


class Answering(Api):
    """A homeserver that answers anything with the same."""

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__(Access("", ""))
        self.answer = answer

    async def call(self, *_: Any, **__: Any) -> dict[str, Any]:
        return self.answer


NAMES = [
    "device_keys", "master_keys", "one_time_key_counts", "one_time_keys", "signed_curve25519", "failures", "next_batch",
    "to_device", "events", "device_lists", "changed", "left", "device_one_time_keys_count", "keys",
    "device_unused_fallback_key_types", MARA, ADA, "D", "Da",
]  # fmt: skip
answers = st.dictionaries(
    st.sampled_from(NAMES),
    json_values
    | st.dictionaries(st.sampled_from(NAMES), json_values | st.dictionaries(st.sampled_from(NAMES), json_values)),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(answers, answers)
def test_a_homeserver_that_answers_nonsense_is_refused_or_borne(tmp_path: Path, first: Any, then: Any) -> None:
    """Whatever is answered, a device says that it was nonsense, or goes on; what it seals is sealed."""
    from mesh.bridges.matrix.device import Device

    async def use(vault: Vault) -> None:
        api = Answering(first)
        device = Device(api, MARA, "D", acting=None, vault=vault, wanted=lambda _room, _session: False)
        try:
            with suppress(MatrixError):
                await device.start(replace=True)
            api.answer = then
            with suppress(MatrixError):
                await device.poll(0)
            with suppress(MatrixError):
                await device.mend()
            sealed = await device.seal(ROOM, frozenset(PEOPLE), "m.room.message", WORDS)
            assert "hello" not in str(sealed)
        finally:
            device.close()

    with closing(Vault(tmp_path / os.urandom(8).hex(), MARA)) as vault:
        asyncio.run(use(vault))


def test_signing_keys_sign_devices_and_come_back_from_text(world: World) -> None:
    """The chain from the master key to the device holds, and holds no more when a word is changed."""
    keys = SigningKeys.load(SigningKeys.new().dump())
    body = keys.upload(ADA)
    signing = body["self_signing_key"]
    (public,) = signing["keys"].values()
    device = keys.sign_device(ADA, world.keys(ADA))[ADA]["Da"]
    assert is_signed(signing, ADA, keys.public)
    assert is_signed(device, ADA, public)
    assert keys.has_signed(ADA, device)
    assert not is_signed(device | {"device_id": "other"}, ADA, public)
    assert not is_signed(device, EVE, public)
    assert "pickle" not in repr(keys)
    assert repr(keys) == "SigningKeys(…)"


@given(json_values, json_values)
def test_signatures_are_checked_whatever_they_are(value: Any, public: Any) -> None:
    found = value if isinstance(value, dict) else {"signatures": value}
    assert not is_signed(found, ADA, str(public))
    assert not is_signed(found | {"signatures": {ADA: {f"ed25519:{public}": value}}}, ADA, str(public))
    assert canonical(found) == canonical(found | {"signatures": {}, "unsigned": 1})


def test_a_vault_is_private_and_has_one_owner(tmp_path: Path) -> None:
    """Files are readable by their owner alone; a second process is told to wait; another device begins afresh."""
    base = tmp_path / "matrix"
    vault = Vault(base, ADA)
    vault.set(device="D1", user=ADA)
    first = vault.room_for("D1")
    first.write_text("keys")
    assert vault.room_for("D1").read_text() == "keys"
    with pytest.raises(MatrixUnavailable, match="another process"):
        Vault(base, ADA)
    with closing(Vault(base, EVE)):
        assert users(base) == [ADA, EVE]
    modes = {oct(path.stat().st_mode & 0o777) for path in base.rglob("*") if path.is_file()}
    assert modes == {"0o600"}
    assert oct(base.stat().st_mode & 0o777) == "0o700"
    assert vault.room_for("D2").read_text() == ""
    assert not first.exists()
    vault.close()
    with closing(Vault(base, ADA)) as again:
        assert again.get("device") == "D1"
        again.unset("device")
        assert again.get("device") is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None)
@given(name=st.text(st.characters(exclude_categories=["Cs"]), max_size=100))
def test_a_vault_stays_in_its_place_whatever_the_user_is_called(tmp_path: Path, name: str) -> None:
    base, user = tmp_path / "matrix", f"@{name}:x"
    with closing(Vault(base, user)) as vault:
        vault.set(user=user)
        assert has_vault(base, user)
        assert [path.parent.parent for path in tmp_path.rglob("device.db")] == [base] * len(list(base.iterdir()))


@given(st.text(max_size=60_000), st.integers(2_000, 45_000))
def test_what_is_sealed_is_made_to_fit(text: str, room: int) -> None:
    """A message or edit is cut to its room, and left alone when it fits."""
    whole = message(text or "x")
    for content in (whole, edit("$e", whole)):
        short = shorter(content, room)
        assert size(short) <= room
        assert short == content or size(content) > room


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(tmp_path / "node.db", {"matrix": MATRIX_SCHEMA})) as one:
        yield one


def test_old_words_are_not_served_as_new_ones(store: Store) -> None:
    """A place in a session belongs to one event, also after a restart."""
    assert Sealed(store).is_first("session", 0, "$one")
    assert Sealed(store).is_first("session", 0, "$one")
    assert not Sealed(store).is_first("session", 0, "$other")
    assert Sealed(store).is_first("session", 1, "$other")


def sealed_event(number: int, room: str = ROOM) -> Inbound:
    return Inbound(f"$e{number}", room, ADA, SEALED, {"session_id": "s"}, 0, "account")


def test_what_cannot_be_opened_waits_in_order_and_is_asked_for_once(store: Store) -> None:
    """One request a key, whatever the number of events; after a restart they still wait."""
    assert [Sealed(store).keep(sealed_event(number), "s") for number in (1, 2, 2)] == [True, False, False]
    again = Sealed(store)
    assert again.is_wanted(ROOM, "s")
    assert again.sessions() == [(ROOM, "s")]
    assert list(again.waiting(ROOM, "s")) == [[sealed_event(1), sealed_event(2)]]
    assert again.holds("$e1", ROOM)
    assert not again.holds("$e1", "!other:x")
    again.forget(["$e1", "$e2"])
    assert not again.is_wanted(ROOM, "s")


def test_made_up_sessions_make_no_work(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a number of keys a room, none is asked for; another room's are, and the oldest events are forgotten."""
    monkeypatch.setattr(sealed_module, "ASKED", 3)
    monkeypatch.setattr(sealed_module, "KEPT", 5)
    one = Sealed(store)
    assert [one.keep(sealed_event(number), f"s{number}") for number in range(8)] == [True] * 3 + [False] * 5
    assert len(one.sessions()) == 5
    assert one.keep(sealed_event(8, "!other:x"), "s")


def test_a_bridge_without_encrypted_rooms_loads_no_cryptography() -> None:
    """Importing both ways in leaves nio and vodozemac alone."""
    program = (
        "import sys, mesh.bridges.matrix.account, mesh.bridges.matrix.appservice;"
        "sys.exit(any(name in sys.modules for name in ('nio', 'vodozemac', 'peewee')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
