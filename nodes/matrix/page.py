"""Why something was said, as a page: what `mesh why --prompt` shows, for whoever has the link."""

import hashlib
import hmac
import html
from dataclasses import dataclass, field
from typing import Final

from mesh.bridges.matrix.push import PAGES
from mesh.store import Store
from nodes.explain import as_text, why
from protocol.acts import ID_BYTES

SEAL_BYTES: Final = 16  # of a link: nobody guesses it
_PAGE: Final = """\
<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta name="referrer" content="no-referrer"><meta name="robots" content="noindex">
<title>{title}</title>
<style>body{{margin:2rem;font:15px/1.5 system-ui}}pre{{white-space:pre-wrap;overflow-wrap:anywhere}}</style>
<h1>{title}</h1>
<pre>{text}</pre>
</html>
"""


@dataclass(frozen=True, slots=True)
class Pages:
    """Links that begin with `base`, and what they show. `key` is the node's own: without it nobody makes a link."""

    base: str
    key: bytes = field(repr=False)
    store: Store

    def link(self, act: bytes) -> str:
        """The address of an act's page. It shows the em's text and the room's to anybody who has it."""
        return f"{self.base.rstrip('/')}{PAGES}{act.hex()}/{self._seal(act)}"

    def page(self, act: str, seal: str) -> str | None:
        """The page behind the two last parts of a link; None when it is none of ours."""
        try:
            identity = bytes.fromhex(act)
        except ValueError:
            return None
        if len(identity) != ID_BYTES or not hmac.compare_digest(self._seal(identity).encode(), seal.encode()):
            return None
        lines = "\n".join(as_text(why(self.store, identity), None, whole=True))
        return _PAGE.format(title="Why it was said", text=html.escape(lines))

    def _seal(self, act: bytes) -> str:
        return hashlib.blake2b(act, key=self.key, person=b"why", digest_size=SEAL_BYTES).hexdigest()
