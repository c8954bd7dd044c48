"""A person whose client encrypts: matrix-nio as it comes."""

import asyncio
from pathlib import Path
from typing import Any

from homeserver import Synapse
from nio import AsyncClient, AsyncClientConfig, MegolmEvent, MessageDirection, RoomKeyRequest
from nio.crypto import OlmDevice

from mesh.bridges.matrix.port import ENCRYPTION, MESSAGE

SEALING = {"type": ENCRYPTION, "state_key": "", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}


class Human:
    """A person with one encrypting client."""

    def __init__(self, synapse: Synapse, login: dict[str, Any], folder: Path) -> None:
        folder.mkdir()
        config = AsyncClientConfig(encryption_enabled=True, store_sync_tokens=True)
        self.client = AsyncClient(synapse.url, login["user_id"], store_path=str(folder), config=config)
        self.client.restore_login(login["user_id"], login["device_id"], login["access_token"])
        self.id: str = login["user_id"]

    async def begin(self) -> None:
        await self.client.keys_upload()
        await self.sync()

    async def sync(self) -> None:
        """Hear everything, and do what an encrypting client does after it."""
        await self.client.sync(0, full_state=True)
        if self.client.should_upload_keys:
            await self.client.keys_upload()
        if self.client.should_query_keys:
            await self.client.keys_query()
        if self.client.should_claim_keys:
            await self.client.keys_claim(self.client.get_users_for_key_claiming())
        await self.client.send_to_device_messages()

    async def room(self, *invited: str) -> str:
        return str((await self.client.room_create(invite=list(invited), initial_state=[SEALING])).room_id)

    async def say(self, room: str, text: str, **more: Any) -> str:
        await self.sync()
        content = {"msgtype": "m.text", "body": text} | more
        sent = await self.client.room_send(room, MESSAGE, content, ignore_unverified_devices=True)
        return str(sent.event_id)

    async def events(self, room: str) -> list[Any]:
        """All events of a room as this client sees them, oldest first."""
        await self.sync()
        found, start = list[Any](), ""
        while True:
            page = await self.client.room_messages(room, start, direction=MessageDirection.front, limit=500)
            found += page.chunk
            if not page.end or not page.chunk:
                return found
            start = page.end

    async def heard(self, room: str) -> list[str]:
        """What others said, as far as this client can read it: `?` where it cannot."""
        said = [event for event in await self.events(room) if event.sender != self.id]
        return [
            "?" if isinstance(event, MegolmEvent) else event.source["content"]["body"].split(": ", 1)[-1]
            for event in said
            if isinstance(event, MegolmEvent) or event.source["type"] == MESSAGE
        ]

    async def until(self, room: str, text: str) -> list[str]:
        """`heard` once something has been said."""
        while text not in (found := await self.heard(room)):
            await asyncio.sleep(0)
        return found


async def key_request(human: Human, user: str) -> RoomKeyRequest:
    """The next request for a key by a user."""
    while True:
        answer = await human.client.sync(1000)
        for event in answer.to_device_events:
            if isinstance(event, RoomKeyRequest) and event.sender == user:
                return event


async def forward(human: Human, request: RoomKeyRequest) -> None:
    """Give the key that was asked for, as clients do for those who should have had it."""
    olm = human.client.olm
    device: OlmDevice = olm.device_store[request.sender][request.requesting_device_id]
    group = olm.inbound_group_store.get(request.room_id, olm.account.identity_keys["curve25519"], request.session_id)
    session = olm.session_store.get(device.curve25519)
    await human.client.to_device(olm._encrypt_forwarding_key(request.room_id, group, session, device))
