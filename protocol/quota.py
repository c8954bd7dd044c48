"""Quotas: how much of one's own node a peer may use. Pure: counts in, counts or a refusal out; `now_ms` is an argument.

Windows are whole minutes and whole days of Unix time. Ask `Spent.refusal` before the act is taken or the model is
called, and `Spent.add` what is then used: nothing is spent on what was refused.
"""

from typing import Final

import msgspec

from protocol.budget import Count

MINUTE_MS: Final = 60_000
DAY_MS: Final = 86_400_000


class Quota(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, gc=False):
    """What one peer may use: acts a minute, chains begun a day, and model tokens a day that its chains cost."""

    acts_a_minute: Count
    roots_a_day: Count
    tokens_a_day: Count


class Spent(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What one peer has used: `acts` in the minute number `minute`, the rest in the day number `day`.

    A value to be kept with the peer, so that a restart does not give its quota back. A clock that goes back opens no
    new window.
    """

    minute: int = 0
    acts: int = 0
    day: int = 0
    roots: int = 0
    tokens: int = 0

    def refusal(self, quota: Quota, now_ms: int, acts: int = 0, roots: int = 0, tokens: int = 0) -> str | None:
        """Why this much more would be too much, as a phrase for a person; None while it is not.

        Only what is asked for is looked at: a peer out of tokens may still speak.
        """
        now = self._at(now_ms)
        if acts and now.acts + acts > quota.acts_a_minute:
            return f"more than {quota.acts_a_minute} acts a minute"
        if roots and now.roots + roots > quota.roots_a_day:
            return f"more than {quota.roots_a_day} chains begun today"
        if tokens and now.tokens + tokens > quota.tokens_a_day:
            return f"more than {quota.tokens_a_day} tokens today"
        return None

    def add(self, now_ms: int, acts: int = 0, roots: int = 0, tokens: int = 0) -> "Spent":
        """The counts with this much more.

        Negative `tokens` give back what was reserved and not used; after midnight there is nothing to give back to.
        """
        now = self._at(now_ms)
        return Spent(now.minute, now.acts + acts, now.day, now.roots + roots, max(0, now.tokens + tokens))

    def _at(self, now_ms: int) -> "Spent":
        minute, day = max(self.minute, now_ms // MINUTE_MS), max(self.day, now_ms // DAY_MS)
        return Spent(
            minute,
            self.acts if minute == self.minute else 0,
            day,
            self.roots if day == self.day else 0,
            self.tokens if day == self.day else 0,
        )
