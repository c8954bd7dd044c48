"""Keys are nkeys: NATS's own library reads ours, and we read its."""

import nkeys
import pytest
from acts_strategies import MESH, NODE
from hypothesis import given
from hypothesis import strategies as st

from protocol.certificate import Certificate, Revocation, issue, read_certificate, read_revocation, revoke
from protocol.errors import BadCertificate, BadKey
from protocol.keys import KeyKind, NodeId, Signer, decode_public, encode_public, fingerprint

CERTIFICATE = Certificate(MESH.public, NODE.public, 1_000, 2_000, ["speak"])


@given(st.binary(min_size=32, max_size=32), st.sampled_from(list(KeyKind)))
def test_the_nkeys_library_agrees(seed: bytes, kind: KeyKind) -> None:
    signer = Signer(seed, kind)
    theirs = nkeys.from_seed(bytearray(signer.seed().encode()))
    assert theirs.public_key.decode() == signer.public
    assert theirs.sign(b"text") == signer.sign(b"text")
    assert Signer.from_seed(signer.seed()).public == signer.public
    assert encode_public(decode_public(signer.public, kind), kind) == signer.public


@given(st.text(max_size=70))
def test_no_text_but_a_key_is_a_key(text: str) -> None:
    with pytest.raises(BadKey):
        decode_public(text, KeyKind.NODE)
    with pytest.raises(BadKey):
        Signer.from_seed(text)


def test_every_changed_character_of_a_key_is_noticed() -> None:
    for place, character in enumerate(NODE.public):
        changed = NODE.public[:place] + ("A" if character != "A" else "B") + NODE.public[place + 1 :]
        with pytest.raises(BadKey):
            decode_public(changed, KeyKind.NODE)


def test_a_key_of_another_kind_is_refused() -> None:
    with pytest.raises(BadKey, match="mesh"):
        decode_public(NODE.public, KeyKind.MESH)


def test_a_seed_shows_nowhere() -> None:
    assert NODE.seed() not in f"{NODE!r} {NODE!s} {vars(Signer)}"
    with pytest.raises(BadKey) as caught:
        Signer.from_seed(NODE.seed()[:-1] + "A")
    assert NODE.seed()[4:20] not in str(caught.value)


def test_fingerprints_are_short_and_differ() -> None:
    assert fingerprint(MESH.public) == MESH.public[1:5] != fingerprint(NODE.public)


def test_a_certificate_is_valid_within_its_time_alone() -> None:
    read = read_certificate(issue(MESH, CERTIFICATE))
    assert read == CERTIFICATE
    read.check(1_000)
    for wrong in (999, 2_001):
        with pytest.raises(BadCertificate, match="clock"):
            read.check(wrong)


def test_certificates_and_revocations_refuse_every_flipped_bit_and_truncation() -> None:
    documents = [
        (issue(MESH, CERTIFICATE), read_certificate),
        (revoke(MESH, Revocation(MESH.public, 3, [NodeId(NODE.public)])), read_revocation),
    ]
    for data, read in documents:
        for place in range(len(data) * 8):
            damaged = bytearray(data)
            damaged[place // 8] ^= 1 << place % 8
            with pytest.raises(BadCertificate):
                read(bytes(damaged))
        for length in range(len(data)):
            with pytest.raises(BadCertificate):
                read(data[:length])


def test_one_document_is_not_the_other() -> None:
    with pytest.raises(BadCertificate):
        read_revocation(issue(MESH, CERTIFICATE))


def test_only_the_mesh_itself_signs() -> None:
    with pytest.raises(ValueError, match="itself"):
        issue(Signer(b"x" * 32, KeyKind.MESH), CERTIFICATE)


@given(st.binary(max_size=300))
def test_any_bytes_are_no_certificate(data: bytes) -> None:
    with pytest.raises(BadCertificate):
        read_certificate(data)
