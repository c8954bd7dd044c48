"""Cross-signing: a user's master key signs a key that signs the user's devices. Pure; loads vodozemac.

Clients that share no keys with unsigned devices (MSC4153) accept a device that is signed so. The three keys are
ordinary Ed25519 keys, kept as vodozemac accounts of which only the signing half is used.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import vodozemac

USAGES: Final = ("master", "self_signing", "user_signing")
SIGNING: Final = "signing"  # the fact in the vault that holds the keys
PICKLE_KEY: Final = bytes(32)  # the file's mode protects it; a key beside it would add nothing


@dataclass(frozen=True, slots=True)
class SigningKeys:
    """A user's three keys."""

    master: vodozemac.Account
    self_signing: vodozemac.Account
    user_signing: vodozemac.Account

    @classmethod
    def new(cls) -> Self:
        """Three new keys."""
        return cls(vodozemac.Account(), vodozemac.Account(), vodozemac.Account())

    @classmethod
    def load(cls, text: str) -> Self:
        """What `dump` gave. Raises ValueError."""
        pickles = json.loads(text)
        return cls(*(vodozemac.Account.from_pickle(pickles[usage], PICKLE_KEY) for usage in USAGES))

    def dump(self) -> str:
        """As text, secret keys and all."""
        return json.dumps({usage: getattr(self, usage).pickle(PICKLE_KEY) for usage in USAGES})

    def __repr__(self) -> str:
        return "SigningKeys(…)"

    @property
    def public(self) -> str:
        """The public master key in unpadded base64."""
        return _public(self.master)

    def upload(self, user: str) -> dict[str, Any]:
        """The body of `keys/device_signing/upload`."""
        body = {
            f"{usage}_key": {
                "user_id": user,
                "usage": [usage],
                "keys": {f"ed25519:{_public(getattr(self, usage))}": _public(getattr(self, usage))},
            }
            for usage in USAGES
        }
        for usage in USAGES[1:]:
            _sign(body[f"{usage}_key"], user, self.master)
        return body

    def sign_device(self, user: str, device: Mapping[str, Any]) -> dict[str, Any]:
        """The body of `keys/signatures/upload` for a device of the user; `device` has its public keys."""
        signed = {name: value for name, value in device.items() if name not in {"signatures", "unsigned"}}
        _sign(signed, user, self.self_signing)
        return {user: {device["device_id"]: signed}}

    def has_signed(self, user: str, device: Mapping[str, Any]) -> bool:
        """Whether a device's keys, as the homeserver has them, bear our signature."""
        return is_signed(device, user, _public(self.self_signing))


def is_signed(value: Mapping[str, Any], user: str, public: str) -> bool:
    """Whether a JSON object bears a valid signature of a user's key. Total: takes any JSON object."""
    try:
        signature = vodozemac.Ed25519Signature.from_base64(value["signatures"][user][f"ed25519:{public}"])
        vodozemac.Ed25519PublicKey.from_base64(public).verify_signature(canonical(value).encode(), signature)
    except (KeyError, TypeError, ValueError, vodozemac.SignatureException, vodozemac.KeyException):
        return False
    return True


def canonical(value: Mapping[str, Any]) -> str:
    """Canonical JSON as it is signed: sorted, without spaces, signatures and what is unsigned."""
    bare = {name: inside for name, inside in value.items() if name not in {"signatures", "unsigned"}}
    return json.dumps(bare, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _public(key: vodozemac.Account) -> str:
    return key.ed25519_key.to_base64()


def _sign(value: dict[str, Any], user: str, key: vodozemac.Account) -> None:
    signature = key.sign(canonical(value).encode()).to_base64()
    value["signatures"] = {user: {f"ed25519:{_public(key)}": signature}}
