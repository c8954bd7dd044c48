"""What can be wrong with what was said.

All of these are the other side's fault: drop it, count it, perhaps answer. A mistake of ours is a ValueError.

ProtocolError
├── BadFrame         bytes that are not a frame; `fault` says which check refused them
├── BadAct           an act whose fields or body break its schema
├── BadAddress       a name, basin, mesh or subject that is not well formed
├── BadKey           text that is not the nkey it should be
├── BadCertificate   a certificate or revocation list that is malformed, forged, or not valid now
├── BadRequest       a request to a node that its owner did not make, or made long ago
├── BadInvitation    a code or an offer that is mistyped, expired, or not the inviter's; `fault` says which
├── BadPassport      a passport of an em that is malformed or forged
├── BadProof         a proof of an act that is malformed, or does not hold
├── BadDocument      a card, an introduction or a receipt that is malformed, forged, or out of date
├── BadLink          a statement about a relationship that is not lawful; `fault` says why
├── BadTerm          a word and its meaning that break the rules, or an act about one that does not count
└── BudgetRaised     an act that leaves its chain more than its parent had; `field` says what
"""

from enum import StrEnum


class ProtocolError(Exception):
    """Base of everything that `protocol` raises about foreign matter."""


class FrameFault(StrEnum):
    """Which check refused a frame."""

    SHORT = "short"
    LONG = "long"
    VERSION = "version"
    SIGNATURE = "signature"
    BODY = "body"


class BadFrame(ProtocolError):
    """Bytes that are not a frame."""

    def __init__(self, fault: FrameFault, detail: str = "") -> None:
        super().__init__(f"not a frame ({fault}){': ' + detail if detail else ''}")
        self.fault = fault


class BadAct(ProtocolError):
    """An act whose fields or body break its schema."""


class BadAddress(ProtocolError):
    """A name, basin, mesh or subject that is not well formed."""


class BadKey(ProtocolError):
    """Text that is not the nkey it should be."""


class BadCertificate(ProtocolError):
    """A certificate or revocation list that is malformed, forged, or not valid now."""


class BadRequest(ProtocolError):
    """A request to a node that its owner did not make, or made long ago."""


class BadPassport(ProtocolError):
    """A passport of an em that is malformed or forged."""


class BadProof(ProtocolError):
    """A proof of an act that is malformed, or in which a link of the chain does not hold."""


class BadDocument(ProtocolError):
    """A card, an introduction or a receipt that is malformed, forged, out of date, or another's."""


class InvitationFault(StrEnum):
    """What is wrong with a code or an offer, and so what a person can do about it."""

    MISTYPED = "mistyped"  # read it again: a character is wrong or missing
    VERSION = "version"  # update this node, or ask for a code that it can read
    CONTENT = "content"  # whoever wrote it does not follow the protocol
    EXPIRED = "expired"  # ask for a new one
    FORGED = "forged"  # an offer that is not the inviter's own


class BadInvitation(ProtocolError):
    """Text that is not an invitation which still holds, or bytes that are not the offer behind it."""

    def __init__(self, fault: InvitationFault, sentence: str) -> None:
        super().__init__(sentence)
        self.fault = fault


class LinkFault(StrEnum):
    """Why a statement about a relationship does not count."""

    AUTHOR = "author"  # only the mesh's own person may say it
    BODY = "body"  # its fields break their schema
    CLOCK = "clock"  # it is dated ahead of now
    EARLY = "early"  # statements before it are missing: ask for them, then try again
    UNLAWFUL = "unlawful"  # nobody who follows the protocol could have said it


class BadLink(ProtocolError):
    """A statement about a relationship that is not lawful."""

    def __init__(self, fault: LinkFault, sentence: str) -> None:
        super().__init__(sentence)
        self.fault = fault


class BadTerm(ProtocolError):
    """A word and its meaning that break the rules for them, or an act about one that does not count."""


class BudgetRaised(ProtocolError):
    """An act that leaves its chain more than its parent left."""

    def __init__(self, field: str, parent: int, child: int) -> None:
        super().__init__(f"the act raises its chain's {field} from {parent} to {child}")
        self.field = field
