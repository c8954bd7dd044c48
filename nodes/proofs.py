"""Proofs of acts for a person: made from what a node has kept, read from a file, and told in plain words."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from mesh.errors import StoreFailed
from mesh.store import Store
from mesh.words import plain
from nodes.errors import ConfigError, HomeError, NodeError
from nodes.home import Home
from nodes.layout import counted
from nodes.textfile import read_bytes
from protocol.acts import ActId
from protocol.certificate import Revocation, read_certificate, read_revocation
from protocol.errors import BadProof, ProtocolError
from protocol.frame import MAX_ACTS
from protocol.husk import is_husk
from protocol.keys import MeshId, fingerprint
from protocol.proof import MAX_PROOF, Proved, check_proof, read_proof, write_proof

TAKEN_BACK: Final = "the words were taken back; what is proved is who spoke, where, when, and in answer to what"
REVOKED: Final = (
    "the mesh took this node out of service; what it signed before may still be true, its date alone does not prove it"
)


@dataclass(frozen=True, slots=True)
class Known:
    """What a home adds to a proof: who is who here, and the newest revocation lists, as signed."""

    me: MeshId | None = None
    petnames: Mapping[str, str] = field(default_factory=dict[str, str])
    revocations: Mapping[str, bytes] = field(default_factory=dict[str, bytes])

    def revocation(self, mesh: str) -> Revocation | None:
        """The newest list of a mesh that is known here."""
        data = self.revocations.get(mesh)
        return None if data is None else read_revocation(data)

    def called(self, mesh: str) -> str:
        """What a mesh is to the person here."""
        if mesh == self.me:
            return "this mesh"
        name = self.petnames.get(mesh)
        return "not known here" if name is None else f"{name} here"


def known(home: Home, store: Store | None) -> Known:
    """What a home knows; what cannot be read of it is left out, since a proof stands without it."""
    lists = dict[str, bytes]()
    names = dict[str, str]()
    me = None
    if store is not None:
        with contextlib.suppress(StoreFailed):  # tables of a database from before there were peers
            names = dict[str, str](store.rows("SELECT mesh, petname FROM peers"))
            lists = dict[str, bytes](store.rows("SELECT mesh, data FROM link_revocations"))
    with contextlib.suppress(HomeError, ProtocolError):
        me = home.mesh_id()
        for data in home.documents()[1]:
            lists[read_revocation(data).mesh] = data
    return Known(me, names, lists)


def prove(home: Home, store: Store, identity: bytes) -> bytes:
    """The proof of an act that is kept here, unchecked. Raises NodeError when there is none to be had."""
    row = store.one("SELECT place FROM acts WHERE id = ?", (identity,))
    if row is None:
        raise NodeError(f"{identity.hex()} was written and never said: there is nothing to prove")
    sql = "SELECT mesh, node, frame FROM frames JOIN origins USING (origin) WHERE n = ?"
    mesh, node, frame = store.one(sql, (row[0] // MAX_ACTS,))
    certificate = home.paper(node) or _paper(store, mesh, node)
    if certificate is None:
        raise NodeError(
            f"the certificate of the node {fingerprint(node)}, which signed this, is not kept here any more"
        )
    return write_proof(ActId(identity), frame, certificate, known(home, store).revocations.get(mesh))


def _paper(store: Store, mesh: str, node: str) -> bytes | None:
    try:
        row = store.one("SELECT data FROM link_papers WHERE mesh = ? AND node = ?", (mesh, node))
    except StoreFailed:
        return None
    return row[0] if row else None


def read(path: Path) -> bytes:
    """The bytes of a proof's file. Raises NodeError."""
    try:
        return read_bytes(path, MAX_PROOF)
    except ConfigError as error:
        raise NodeError(str(error)) from None


def check(data: bytes, there: Known) -> Proved:
    """Verify a proof with what is known here. Raises BadProof."""
    proof = read_proof(data)
    try:
        mesh = read_certificate(proof.certificate).mesh
    except ProtocolError as error:
        raise BadProof(f"the certificate proves nothing: {error}") from None
    return check_proof(proof, there.revocation(mesh))


def verdict(proved: Proved) -> str:
    """What it comes to, in one sentence."""
    if proved.revoked:
        return f"Not proved: {REVOKED}."
    if is_husk(proved.act):
        return f"Proved: {TAKEN_BACK}."
    return "Proved: the mesh whose key this is stands for these words, by its node."


def as_text(proved: Proved, there: Known) -> list[str]:
    """The chain of proof, for a person."""
    act, frame, certificate = proved.act, proved.frame, proved.certificate
    mesh, node = certificate.mesh, certificate.node
    others = len(frame.acts) - 1
    answers = f", about {act.refs[0].hex()}" if act.refs else ""
    return [
        f"author       {plain(act.author)}",
        f"mesh         {fingerprint(mesh)}  {mesh}  ({plain(there.called(mesh))})",
        f"basin        {frame.basin}",
        f"act          {act.id.hex()}, {act.kind}{answers}",
        f"said         {utc(act.at_ms)}, by its author's clock",
        *_text(proved),
        "",
        f"signature    holds, over the frame that was sent {utc(frame.sent_at_ms)}"
        + (f"; {counted(others, 'other act')} in it" if others else ""),
        f"node         {fingerprint(node)}  {node}",
        f"certificate  by the mesh's key; valid then, until {utc(certificate.not_after_ms)}",
        f"revoked      {_revoked(proved)}",
        "",
        verdict(proved),
    ]


def _text(proved: Proved) -> list[str]:
    if is_husk(proved.act):
        return [f"text         {TAKEN_BACK}"]
    first, *rest = proved.act.text.splitlines() or [""]
    return [
        f"text         {plain(first, len(first) + 1)}",
        *(f"             {plain(one, len(one) + 1)}" for one in rest),
    ]


def _revoked(proved: Proved) -> str:
    held = proved.revocation
    if held is None:
        return "no list of that mesh is known: as far as is known here, it has revoked nobody"
    return f"{'YES, by' if proved.revoked else 'no, not by'} the mesh's list number {held.serial}"


def as_json(proved: Proved, there: Known) -> dict[str, Any]:
    """The same for scripts."""
    act, frame, certificate = proved.act, proved.frame, proved.certificate
    return {
        "proved": not proved.revoked,
        "verdict": verdict(proved),
        "id": act.id.hex(),
        "kind": act.kind,
        "author": act.author,
        "mesh": certificate.mesh,
        "fingerprint": fingerprint(certificate.mesh),
        "own": certificate.mesh == there.me,
        "petname": there.petnames.get(certificate.mesh),
        "node": certificate.node,
        "basin": frame.basin,
        "at_ms": act.at_ms,
        "sent_at_ms": frame.sent_at_ms,
        "text": act.text,
        "refs": [one.hex() for one in act.refs],
        "taken_back": is_husk(act),
        "valid_from_ms": certificate.not_before_ms,
        "valid_until_ms": certificate.not_after_ms,
        "list": None if proved.revocation is None else proved.revocation.serial,
        "revoked": proved.revoked,
    }


def utc(at_ms: int) -> str:
    """A time (Unix milliseconds) that reads the same on every machine."""
    try:
        return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):
        return "at a time that no calendar has"
