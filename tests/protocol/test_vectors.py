"""The golden vectors that another language can use, cross-checked with a MessagePack codec that is not ours."""

import json
from pathlib import Path
from typing import Any

import msgpack
import pytest

from protocol.acts import Act, reply_id, reply_key
from protocol.budget import Budget
from protocol.certificate import Certificate, issue, read_certificate
from protocol.errors import BadFrame, BadInvitation
from protocol.frame import decode_frame, encode_frame, frame_id
from protocol.invitation import Invitation, read_invitation, write_code, write_link
from protocol.keys import KeyKind, Signer
from protocol.offer import Offer, read_offer, sign_offer
from protocol.statement import own_basin
from protocol.vocabulary import core_terms, digest, digest_of_all

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "v1.json").read_text("utf-8"))
NODE = Signer(bytes.fromhex(VECTORS["node"]["seed"]), KeyKind.NODE)
MESH = Signer(bytes.fromhex(VECTORS["mesh"]["seed"]), KeyKind.MESH)


@pytest.mark.parametrize("vector", VECTORS["frames"], ids=lambda vector: vector["name"])
def test_frames(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    frame = decode_frame(data)
    assert frame_id(data) == vector["id"]
    assert frame.node == VECTORS["node"]["public"]
    told = [
        {
            "id": act.id.hex(),
            "kind": act.kind,
            "author": act.author,
            "refs": [ref.hex() for ref in act.refs],
            "root": act.root.hex(),
            "budget": [act.budget.hops, act.budget.acts, act.budget.tokens, act.budget.until_ms],
            "at_ms": act.at_ms,
            "text": act.text,
        }
        for act in frame.acts
    ]
    assert told == vector["acts"]
    assert encode_frame(NODE, frame.sequence, frame.sent_at_ms, frame.basin, frame.acts) == data


@pytest.mark.parametrize("vector", VECTORS["frames"], ids=lambda vector: vector["name"])
def test_another_codec_reads_and_writes_the_same_bytes(vector: dict[str, Any]) -> None:
    body = bytes.fromhex(vector["hex"])[97:]
    sequence, sent, basin, acts = msgpack.unpackb(body)
    assert (sequence, sent, basin) == (vector["sequence"], vector["sent_at_ms"], vector["basin"])
    assert [act[7]["text"] for act in acts] == [act["text"] for act in vector["acts"]]
    assert msgpack.packb([sequence, sent, basin, acts]) == body


@pytest.mark.parametrize("vector", VECTORS["refused"], ids=lambda vector: vector["name"])
def test_refused(vector: dict[str, str]) -> None:
    with pytest.raises(BadFrame) as caught:
        decode_frame(bytes.fromhex(vector["hex"]))
    assert caught.value.fault == vector["fault"]


def test_keys_documents_and_ids() -> None:
    for signer, told in ((NODE, VECTORS["node"]), (MESH, VECTORS["mesh"])):
        assert (signer.seed(), signer.public) == (told["nkey_seed"], told["public"])
    told = VECTORS["certificate"]
    certificate = Certificate(MESH.public, NODE.public, told["not_before_ms"], told["not_after_ms"], told["may"])
    assert issue(MESH, certificate).hex() == told["hex"]
    assert read_certificate(bytes.fromhex(told["hex"])) == certificate
    told = VECTORS["reply_id"]
    answered = bytes.fromhex(told["answered"])
    act = Act(answered, "say", "me", [], answered, Budget(1, 1, 1, 1), told["at_ms"], {"text": ""})
    assert reply_id(reply_key(NODE), told["author"], MESH.public, act, told["number"]).hex() == told["id"]


def test_the_vocabulary() -> None:
    assert {term.name: digest(term) for term in core_terms()} == VECTORS["vocabulary"]


@pytest.mark.parametrize("vector", VECTORS["invitations"], ids=lambda vector: vector["name"])
def test_invitations(vector: dict[str, Any]) -> None:
    invitation = Invitation(
        MESH.public,
        bytes.fromhex(vector["secret"]),
        vector["expires_s"],
        tuple(vector["addresses"]),
    )
    assert (write_code(invitation), write_link(invitation)) == (vector["code"], vector["link"])
    assert read_invitation(vector["code"]) == read_invitation(vector["link"]) == invitation
    assert invitation.guest().public == vector["guest"]


@pytest.mark.parametrize("vector", VECTORS["invitations_refused"], ids=lambda vector: vector["name"])
def test_invitations_refused(vector: dict[str, str]) -> None:
    with pytest.raises(BadInvitation) as caught:
        read_invitation(vector["code"])
    assert caught.value.fault == vector["fault"]


def test_the_offer_and_the_basin_of_two() -> None:
    told = VECTORS["offer"]
    assert digest_of_all(digest(term) for term in core_terms()) == told["vocabulary"]
    certificate = bytes.fromhex(VECTORS["certificate"]["hex"])
    terms = (certificate, told["gives"], told["takes"], told["expires_s"], told["vocabulary"])
    offer = Offer(MESH.public, told["name"], told["guest"], *terms)
    data = bytes.fromhex(told["hex"])
    assert sign_offer(NODE, offer) == data
    assert read_offer(data, told["guest"], MESH.public, told["expires_s"] * 1000 - 1) == offer
    assert msgpack.packb(msgpack.unpackb(data[64:])) == data[64:]
    told = VECTORS["own_basin"]
    assert own_basin(*told["meshes"]) == told["basin"] == own_basin(*reversed(told["meshes"]))
