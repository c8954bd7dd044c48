"""`!mesh respond`, `remedy`, `settle` and `withdraw` in a Matrix room that is joined to a dispute's basin."""

from collections.abc import Callable
from typing import Any

from nodes.disputes.disputes import Disputes
from nodes.errors import NodeError
from protocol.acts import ActId

DEFAULTS = {"settle": "It is settled for me.", "withdraw": "I drop it."}


def party(
    disputes: Disputes, owner: str | None
) -> Callable[[str, str, str, str], tuple[list[ActId], dict[str, Any]] | str]:
    """What an act in a dispute refers to and holds, asked for in a room; a sentence where it would not count.

    `owner` is the Matrix user of the node's person, who alone is a party; None: nobody is.
    """

    def said(user: str, basin: str, kind: str, text: str) -> tuple[list[ActId], dict[str, Any]] | str:
        dispute = disputes.halls.read(basin)
        if dispute is None:
            return "This room is not that of a dispute."
        if user != owner:
            return "Only the person whose node this is is a party here; what others say is talk."
        words = text.strip() or DEFAULTS.get(kind, "")
        if not words:
            return f"There is nothing to say: write it behind {kind}."
        try:
            disputes.check_reach(dispute)
            return disputes.check(dispute, kind, []), {"text": words}
        except NodeError as error:
            return f"{str(error)[:1].upper()}{str(error)[1:]}."

    return said
