"""Invitations and offers: any text and any bytes give what was meant, or one error that says what to do."""

import re
import string
from typing import Any

import msgspec
import pytest
from acts_strategies import MESH, NODE, OTHER, names
from hypothesis import example, given
from hypothesis import strategies as st

from protocol.certificate import Certificate, issue
from protocol.errors import BadInvitation, InvitationFault
from protocol.invitation import (
    MAX_ADDRESSES,
    MAX_CODE,
    Invitation,
    Place,
    place_of,
    read_address,
    read_invitation,
    write_code,
    write_link,
)
from protocol.keys import KeyKind, Signer
from protocol.offer import MAX_OFFER, Offer, read_offer, sign_offer
from protocol.vocabulary import Digest, core_terms, digest, digest_of_all

NOW = 1_800_000_000_000
SAMPLE = Invitation(MESH.public, b"ten bytes.", NOW // 1000 + 60, ("192.168.1.20:4222", "mesh.example.org:443"))
PLAIN = write_link(SAMPLE).removeprefix("mesh:")
STRANGER = Signer(b"s" * 32, KeyKind.MESH)

labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
hosts = (
    st.ip_addresses(v=4).map(str)
    | st.ip_addresses(v=6).filter(lambda ip: ip.ipv4_mapped is None).map(lambda ip: f"[{ip}]")
    | st.tuples(st.lists(labels, max_size=3), st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True)).map(
        lambda parts: ".".join([*parts[0], parts[1]])
    )
)
marks = st.sampled_from(["", "hub://", "wss://", "hub+wss://"])
addresses = st.tuples(marks, hosts, st.integers(1, 65_535)).map(
    lambda parts: read_address(f"{parts[0]}{parts[1]}:{parts[2]}")
)
invitations = st.builds(
    Invitation,
    st.binary(min_size=32, max_size=32).map(lambda seed: Signer(seed, KeyKind.MESH).public),
    st.binary(min_size=10, max_size=10),
    st.integers(0, 2**32 - 1),
    st.lists(addresses, max_size=MAX_ADDRESSES).map(tuple),
)


@given(invitations, st.randoms(use_true_random=False))
def test_a_code_is_read_however_it_is_spaced_and_in_either_case(invitation: Invitation, dice: Any) -> None:
    code, link = write_code(invitation), write_link(invitation)
    sloppy = "".join(
        dice.choice([letter.lower(), letter.upper()]) + dice.choice(["", "", " ", "\n", "-", "\u2013"])
        for letter in code.replace("-", "")
    )
    for text in (code, link, link.upper(), sloppy, f" mesh: {sloppy}"):
        assert read_invitation(text) == invitation
    assert set(link.upper()) <= set(string.ascii_uppercase + "234567:")  # QR's alphanumeric mode
    assert re.fullmatch(r"([A-Z2-7]{5}-)*[A-Z2-7]{1,5}", code)


def test_a_code_with_one_ipv4_address_is_short() -> None:
    """The mesh takes 52 characters, the secret 16; the rest is address, expiry, version and checksum."""
    assert len(write_link(SAMPLE)) == 5 + 120
    one = Invitation(MESH.public, SAMPLE.secret, SAMPLE.expires_s, ("192.168.1.20:4222",))
    assert len(write_link(one)) == 5 + 90
    assert len(write_link(Invitation(MESH.public, SAMPLE.secret, SAMPLE.expires_s))) == 5 + 79


@given(st.text(max_size=200) | st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567- ", max_size=200))
@example("")
@example("mesh:")
@example("AAAA")
@example("\u0131" * 40)
@example("=" * 8)
def test_any_text_is_mistyped(text: str) -> None:
    with pytest.raises(BadInvitation) as caught:
        read_invitation(text)
    assert caught.value.fault == InvitationFault.MISTYPED


@given(st.integers(0, len(PLAIN) - 1), st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"))
def test_every_wrong_character_is_noticed_as_a_typing_mistake(place: int, letter: str) -> None:
    wrong = PLAIN[:place] + letter + PLAIN[place + 1 :]
    if wrong == PLAIN:
        assert read_invitation(wrong) == SAMPLE
        return
    with pytest.raises(BadInvitation) as caught:
        read_invitation(wrong)
    assert caught.value.fault == InvitationFault.MISTYPED


def test_every_missing_end_missing_character_and_swapped_pair_is_noticed() -> None:
    wrong = {PLAIN[:at] for at in range(len(PLAIN))}
    wrong |= {PLAIN[:at] + PLAIN[at + 1 :] for at in range(len(PLAIN))}
    wrong |= {PLAIN[:at] + PLAIN[at + 1] + PLAIN[at] + PLAIN[at + 2 :] for at in range(len(PLAIN) - 1)} - {PLAIN}
    for text in wrong:
        with pytest.raises(BadInvitation) as caught:
            read_invitation(text)
        assert caught.value.fault == InvitationFault.MISTYPED


def test_digits_that_base32_lacks_are_read_as_the_letters_they_look_like() -> None:
    code = write_code(SAMPLE)
    assert {"O", "I", "B"} & set(code)
    assert read_invitation(code.replace("O", "0").replace("I", "1").replace("B", "8")) == SAMPLE


def _code(data: bytes) -> str:
    from protocol.invitation import _armour

    return _armour(data)


HEAD = MESH.raw + bytes(10) + bytes(4)


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"\x20" + HEAD, "version"),
        (b"\x00", "version"),
        (b"\x10", "content"),
        (b"\x10" + HEAD[:-1], "content"),
        (b"\x10" + HEAD + b"x", "content"),
        (b"\x18" + HEAD, "content"),
        (b"\x11" + HEAD, "content"),
        (b"\x15" + HEAD + b"\0\x7f\0\0\1\0\1" * 5, "content"),
        (b"\x11" + HEAD + b"\0\x7f\0\0\1\0\0", "content"),
        (b"\x11" + HEAD + b"\x097.0.0.127\0\1", "content"),
        (b"\x11" + HEAD + b"\x05A.org\0\1", "content"),
        (b"\x11" + HEAD + b"\x05\xffa.org\0\1", "content"),
        (b"\x11" + HEAD + b"\xff" + bytes(10) + b"\xff\xff\x7f\0\0\1\0\1", "content"),
        (b"\x11" + HEAD + b"\xfe" + b"a" * 254 + b"\0\1", "content"),
        (b"\x11" + HEAD + b"\xfe\0" + b"\1a\0\1", "content"),  # marks that mark nothing
        (b"\x11" + HEAD + b"\xfe\4" + b"\1a\0\1", "content"),
        (b"\x11" + HEAD + b"\xfe\1\xfe\1" + b"\1a\0\1", "content"),
        (b"\x11" + HEAD + b"\xfe\2" + b"\1a\1\xbb", "content"),  # port 443 is TLS without a mark
        (b"\x11" + HEAD + b"\xfe", "content"),
    ],
)
def test_a_whole_code_that_breaks_the_rules_is_told_from_a_mistyped_one(data: bytes, fault: str) -> None:
    with pytest.raises(BadInvitation) as caught:
        read_invitation(_code(data))
    assert caught.value.fault == fault


@given(st.binary(max_size=120).map(lambda tail: b"\x12" + HEAD + tail))
def test_no_content_can_break_the_reader(data: bytes) -> None:
    try:
        invitation = read_invitation(_code(data))
    except BadInvitation as error:
        assert error.fault == InvitationFault.CONTENT  # noqa: PT017 - both ends are lawful
    else:
        assert write_link(invitation) == "mesh:" + _code(data)


def test_an_invitation_holds_until_its_second() -> None:
    SAMPLE.check(SAMPLE.expires_s * 1000 - 1)
    with pytest.raises(BadInvitation, match="ask for a new one") as caught:
        SAMPLE.check(SAMPLE.expires_s * 1000)
    assert caught.value.fault == InvitationFault.EXPIRED


def test_the_secret_is_not_shown_and_makes_a_key_of_its_own() -> None:
    assert "ten bytes" not in repr(SAMPLE)
    guest = SAMPLE.guest()
    assert guest.public.startswith("U")
    assert guest.public == read_invitation(write_code(SAMPLE)).guest().public
    others = [
        Invitation(MESH.public, b"ten bytes!", SAMPLE.expires_s),
        Invitation(STRANGER.public, b"ten bytes.", SAMPLE.expires_s),
    ]
    assert guest.public not in {other.guest().public for other in others}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Example.ORG:443", "example.org:443"),
        ("localhost:4222", "localhost:4222"),
        ("127.0.0.1:1", "127.0.0.1:1"),
        ("[2001:DB8::0:1]:65535", "[2001:db8::1]:65535"),
        ("xn--bcher-kva.example:80", "xn--bcher-kva.example:80"),
        ("HUB://Example.org:7418", "hub://example.org:7418"),
        ("hub+wss://[::1]:7418", "hub+wss://[::1]:7418"),
        ("wss://mesh.example.org:443", "mesh.example.org:443"),
        ("hub+wss://mesh.example.org:443", "hub://mesh.example.org:443"),
    ],
)
def test_an_address_has_one_spelling(text: str, told: str) -> None:
    assert read_address(text) == told == read_address(told)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a:1", Place("a:1", is_hub=False, tls=False)),
        ("a:443", Place("a:443", is_hub=False, tls=True)),
        ("wss://[::1]:7417", Place("[::1]:7417", is_hub=False, tls=True)),
        ("hub://a:7418", Place("a:7418", is_hub=True, tls=False)),
        ("hub://a:443", Place("a:443", is_hub=True, tls=True)),
        ("hub+wss://a:7418", Place("a:7418", is_hub=True, tls=True)),
    ],
)
def test_an_address_says_what_is_there_and_how_it_is_dialled(text: str, place: Place) -> None:
    assert place_of(read_address(text)) == place
    assert place.url == f"{'wss' if place.tls else 'ws'}://{place.host}"


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            ":",
            "a",
            "a:",
            ":1",
            "a:0",
            "a:01",
            "a:65536",
            "a:99999",
            "a:1 ",
            " a:1",
            "a:-1",
            "a b:1",
            "a:1\n",
            "-a:1",
        ),
        *(
            "a-:1",
            "a..b:1",
            ".a:1",
            "a.:1",
            "a_b:1",
            "1.2.3:1",
            "256.1.1.1:1",
            "01.2.3.4:1",
            "0x7f000001:1",
            "2130706433:1",
        ),
        *(
            "::1:80",
            "[::1]",
            "[::1]:0",
            "[127.0.0.1]:1",
            "[::ffff:1.2.3.4]:1",
            "[fe80::1%eth0]:1",
            "[a]:1",
            "a/b:1",
            "a@b:1",
        ),
        *("ws://a:1", "://a:1", "hub:a:1", "hub://hub://a:1", "wss+hub://a:1"),
        *("http://a:1", "ä.org:1", "\u212aa:1", "a:\u0661", f"{'a' * 64}:1", f"{'a.' * 127}b:1"),
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(BadInvitation) as caught:
        read_address(text)
    assert caught.value.fault == InvitationFault.CONTENT


@pytest.mark.parametrize(
    "changes",
    [
        {"secret": b"short"},
        {"expires_s": 2**32},
        {"expires_s": -1},
        {"addresses": ("a:1",) * 5},
        {"addresses": ("A:1",)},
        {"addresses": ("a",)},
    ],
)
def test_what_cannot_be_written_is_our_own_mistake(changes: dict[str, Any]) -> None:
    fields = {"mesh": MESH.public, "secret": bytes(10), "expires_s": 1} | changes
    with pytest.raises(ValueError, match=r"invitation|address"):
        write_code(Invitation(**fields))


def test_the_longest_code_is_within_what_is_read() -> None:
    longest = tuple(f"hub+wss://{'.'.join(['a' * 63] * 3)}.{'b' * 60}{at}:65535" for at in range(MAX_ADDRESSES))
    code = write_code(Invitation(MESH.public, bytes(10), 1, longest))
    assert len(code) == 2075
    assert read_invitation(code).addresses == longest
    with pytest.raises(BadInvitation, match="too long"):
        read_invitation(code + " " * MAX_CODE)


# Offers


CERTIFICATE = issue(MESH, Certificate(MESH.public, NODE.public, NOW - 1000, NOW + 10_000_000, ["speak"]))
GUEST = SAMPLE.guest().public
OFFER = Offer(
    *(MESH.public, "amp", GUEST, CERTIFICATE, {"yappings": "write"}, {"sea": "read"}, SAMPLE.expires_s),
    digest_of_all(digest(term) for term in core_terms()),
)
SIGNED = sign_offer(NODE, OFFER)
basins = st.dictionaries(names, st.sampled_from(["read", "write"]), max_size=64)


@given(basins, basins, names)
def test_an_offer_comes_back_as_it_was(gives: dict[str, Any], takes: dict[str, Any], name: str) -> None:
    offer = msgspec.structs.replace(OFFER, gives=gives, takes=takes, name=name)
    data = sign_offer(NODE, offer)
    assert read_offer(data, GUEST, MESH.public, NOW) == read_offer(data, GUEST, None, NOW) == offer


@given(st.binary(max_size=300))
def test_any_bytes_are_no_offer(data: bytes) -> None:
    with pytest.raises(BadInvitation):
        read_offer(data, GUEST, None, NOW)


def test_every_truncation_and_flipped_bit_of_an_offer_is_refused() -> None:
    for length in range(len(SIGNED)):
        with pytest.raises(BadInvitation):
            read_offer(SIGNED[:length], GUEST, None, NOW)
    for place in range(len(SIGNED) * 8):
        damaged = bytearray(SIGNED)
        damaged[place // 8] ^= 1 << place % 8
        with pytest.raises(BadInvitation):
            read_offer(bytes(damaged), GUEST, None, NOW)


def _forge(signer: Signer, **changes: Any) -> bytes:
    body = msgspec.msgpack.encode(msgspec.structs.replace(OFFER, **changes))
    return signer.sign(b"ampmesh/offer/1\0" + body) + body


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (_forge(OTHER), "forged"),
        (_forge(NODE, mesh=STRANGER.public), "forged"),
        (_forge(NODE, certificate=CERTIFICATE[:-1]), "forged"),
        (_forge(NODE, guest=OTHER.public), "forged"),
        (_forge(NODE, guest="not a key"), "content"),
        (_forge(NODE, name="Not A Name"), "content"),
        (_forge(NODE, gives={"no basin": "read"}), "content"),
        (_forge(NODE, takes={"sea": "own"}), "content"),
        (_forge(NODE, gives={f"b{at}": "read" for at in range(65)}), "content"),
        (_forge(NODE, expires_s=NOW // 1000), "expired"),
        (_forge(NODE, vocabulary="x" * 200), "content"),
        (_forge(NODE, certificate=issue(MESH, Certificate(MESH.public, NODE.public, 0, NOW - 1, []))), "forged"),
        (SIGNED + b"\0", "content"),
        (SIGNED + bytes(MAX_OFFER), "content"),
    ],
)
def test_an_offer_that_is_not_the_inviters_own_is_refused(data: bytes, fault: str) -> None:
    with pytest.raises(BadInvitation) as caught:
        read_offer(data, GUEST, MESH.public, NOW)
    assert caught.value.fault == fault


def test_an_offer_counts_for_its_invitation_alone() -> None:
    for guest, mesh in ((OTHER.public, MESH.public), (GUEST, STRANGER.public)):
        with pytest.raises(BadInvitation, match="another invitation"):
            read_offer(SIGNED, guest, mesh, NOW)


def test_only_the_node_in_the_certificate_can_sign_and_only_what_will_be_read() -> None:
    for signer, offer in ((OTHER, OFFER), (NODE, msgspec.structs.replace(OFFER, name="Amp"))):
        with pytest.raises(ValueError, match=r"signed by|rules"):
            sign_offer(signer, offer)


def test_the_largest_offer_fits() -> None:
    most = {f"{at:064}": "write" for at in range(64)}
    rights = ["r" * 32] * 16
    certificate = issue(MESH, Certificate(MESH.public, NODE.public, 0, 2 * NOW, rights))
    offer = msgspec.structs.replace(OFFER, gives=most, takes=most, certificate=certificate, name="n" * 64)
    assert read_offer(sign_offer(NODE, offer), GUEST, None, NOW) == offer


def test_a_vocabulary_has_one_digest_in_any_order() -> None:
    a, b = Digest("b2:aa"), Digest("b2:bb")
    assert digest_of_all([a, b]) == digest_of_all([b, a, b]) != digest_of_all([a])
