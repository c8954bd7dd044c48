"""Proofs: what is whole is proved, and nothing else is, whatever the bytes."""

import msgspec
import pytest
from acts_strategies import acts
from hypothesis import given
from hypothesis import strategies as st

from protocol.acts import Act
from protocol.certificate import Certificate, Revocation, issue, read_revocation, revoke
from protocol.errors import BadProof
from protocol.frame import encode_frame
from protocol.keys import KeyKind, MeshId, NodeId, Signer
from protocol.proof import MAX_PROOF, check_proof, read_proof, write_proof

MESH, OTHER_MESH = Signer(b"m" * 32, KeyKind.MESH), Signer(b"o" * 32, KeyKind.MESH)
NODE, OTHER = Signer(b"n" * 32, KeyKind.NODE), Signer(b"p" * 32, KeyKind.NODE)
SENT = 1_800_000_000_000


def paper(mesh: Signer = MESH, node: Signer = NODE, start: int = SENT - 9, end: int = SENT + 9) -> bytes:
    return issue(mesh, Certificate(MeshId(mesh.public), NodeId(node.public), start, end, ["speak"]))


def revoked(*nodes: Signer, serial: int = 1, mesh: Signer = MESH) -> bytes:
    return revoke(mesh, Revocation(MeshId(mesh.public), serial, [NodeId(node.public) for node in nodes]))


def frame(*said: Act, signer: Signer = NODE) -> bytes:
    return encode_frame(signer, 7, SENT, "tea", said)


@given(said=acts())
def test_what_was_said_is_proved(said: Act) -> None:
    proved = check_proof(read_proof(write_proof(said.id, frame(said), paper(), None)))
    assert (proved.act, proved.frame.sent_at_ms, proved.certificate.mesh) == (said, SENT, MESH.public)
    assert not proved.revoked


@pytest.mark.parametrize(
    ("certificate", "listed", "reason"),
    [
        (paper(node=OTHER), None, "another node's"),
        (paper(end=SENT - 1), None, "not valid"),
        (paper(start=SENT + 1), None, "not valid"),
        (paper()[:-1] + b"x", None, "certificate proves nothing"),
        (paper(), revoked(OTHER)[:-1] + b"x", "list proves nothing"),
        (paper(), revoked(NODE, mesh=OTHER_MESH), "another mesh's"),
    ],
)
@given(said=acts())
def test_every_link_of_the_chain_is_looked_at(certificate: bytes, listed: bytes | None, reason: str, said: Act) -> None:
    with pytest.raises(BadProof, match=reason):
        check_proof(read_proof(write_proof(said.id, frame(said), certificate, listed)))


@given(said=acts(), other=acts())
def test_an_act_of_another_frame_or_changed_words_are_not_proved(said: Act, other: Act) -> None:
    if said.id != other.id:
        with pytest.raises(BadProof, match="not in the frame"):
            check_proof(read_proof(write_proof(said.id, frame(other), paper(), None)))
    whole = frame(said)
    with pytest.raises(BadProof, match="signature"):
        check_proof(read_proof(write_proof(said.id, whole[:-1] + bytes([whole[-1] ^ 1]), paper(), None)))


@given(said=acts())
def test_the_newest_list_says_whether_the_node_was_revoked(said: Act) -> None:
    shown = read_proof(write_proof(said.id, frame(said), paper(), revoked(OTHER, serial=2)))
    assert not check_proof(shown).revoked
    assert check_proof(shown, read_revocation(revoked(NODE, serial=3))).revoked
    assert not check_proof(shown, read_revocation(revoked(NODE, serial=1))).revoked


@given(data=st.binary(max_size=300))
def test_any_bytes_are_a_proof_or_one_error(data: bytes) -> None:
    with pytest.raises(BadProof):
        check_proof(read_proof(data))


@given(said=acts(), data=st.data())
def test_every_part_of_a_proof_is_no_proof(said: Act, data: st.DataObject) -> None:
    whole = write_proof(said.id, frame(said), paper(), revoked(OTHER))
    end = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(BadProof):
        check_proof(read_proof(whole[:end]))


def test_another_version_and_too_much_are_told_apart() -> None:
    with pytest.raises(BadProof, match="version 2"):
        read_proof(msgspec.msgpack.encode(["ampmesh-proof", 2, "whatever comes"]))
    with pytest.raises(BadProof, match="longer"):
        read_proof(bytes(MAX_PROOF + 1))
    with pytest.raises(BadProof):
        read_proof(b"\x91" * 10_000)
