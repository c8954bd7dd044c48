"""Husks: what is left of an act when its words are taken back. The weave and its budgets hold; the words are gone."""

from collections.abc import Callable
from typing import Any, Final

import msgspec

from protocol.acts import Act
from protocol.frame import HEADER_BYTES, encode_frame, reread_frame
from protocol.keys import KEY_BYTES, Signer

FORGOTTEN: Final = "forgotten"  # the key in a husk's body that tells it from an act that had no words

# What the schema of a kind asks for beyond a text: a husk must pass for an act of its kind wherever it arrives.
_REQUIRED: Final[dict[str, dict[str, Any]]] = {
    "propose": {"term": {"name": "-", "kind": "word", "definition": "-", "schema": None, "obliges": "", "example": ""}},
    "adopt": {"digest": ""},
    "contest": {"digest": ""},
    "retire": {"digest": ""},
}


def husk(act: Act) -> Act:
    """The act without its body's words: id, kind, author, refs, root, budget and time stay."""
    return msgspec.structs.replace(act, body={"text": "", FORGOTTEN: True, **_REQUIRED.get(act.kind, {})})


def is_husk(act: Act) -> bool:
    """Whether nothing is left to take; an act that only says that it was forgotten is none."""
    return act.body.get(FORGOTTEN) is True and act == husk(act)


def hollow(data: bytes, gone: Callable[[Act], bool], signer: Signer | None) -> bytes:
    """A frame with husks in place of the acts that are `gone`; the same bytes when it holds no words of theirs.

    A frame of `signer`'s own is signed anew, with its old sequence and time. A frame of anybody else keeps its header,
    and so no longer verifies: the words are gone, and with them the proof of what shared their frame. `data` must have
    been checked before. Raises BadFrame where it was damaged since.
    """
    frame = reread_frame(data)
    acts = [husk(act) if gone(act) else act for act in frame.acts]
    if acts == frame.acts:
        return data
    if signer is not None and data[1 : 1 + KEY_BYTES] == signer.raw:
        return encode_frame(signer, frame.sequence, frame.sent_at_ms, frame.basin, acts)
    return data[:HEADER_BYTES] + msgspec.msgpack.encode((frame.sequence, frame.sent_at_ms, frame.basin, acts))
