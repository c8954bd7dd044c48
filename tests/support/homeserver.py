"""A real Synapse for tests: its own port, its own random secret, its database in a temporary folder."""

import asyncio
import base64
import contextlib
import datetime as dt
import hashlib
import hmac
import json
import os
import random
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import aiohttp

INSTALLED = find_spec("synapse") is not None
READY_S = 60  # about two seconds on a quiet machine
FREE = {"per_second": 100_000, "burst_count": 100_000}
SERVER_NAME = "localhost"


def free_port() -> int:
    """A port that nobody listens on just now, below those that systems give to who connects: no connection takes it."""
    while True:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            return port


def certificate(folder: Path) -> dict[str, Any]:
    """A certificate for localhost that nobody signed but itself, and the settings that use it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, SERVER_NAME)])
    now = dt.datetime.now(dt.UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(SERVER_NAME)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    kind, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / "hs.crt").write_bytes(signed.public_bytes(kind))
    (folder / "hs.key").write_bytes(key.private_bytes(kind, form, serialization.NoEncryption()))
    return {"tls_certificate_path": str(folder / "hs.crt"), "tls_private_key_path": str(folder / "hs.key")}


def federating(folder: Path, name: str) -> dict[str, Any]:
    """What differs on a homeserver that talks with others of its kind on this machine, as `localhost:PORT`.

    Whom it cannot reach it tries again within seconds, where ten minutes are usual.
    """
    listener = {
        "port": int(name.partition(":")[2]),
        "bind_addresses": ["127.0.0.1"],
        "type": "http",
        "tls": True,
        "resources": [{"names": ["federation"], "compress": False}],
    }
    return certificate(folder) | {
        "server_name": name,
        "more_listeners": [listener],
        "federation_verify_certificates": False,
        "federation_domain_whitelist": None,
        "federation_ip_range_blacklist": [],
        "ip_range_blacklist": [],
        "federation": {
            "destination_min_retry_interval": "1s",
            "destination_retry_multiplier": 1,
            "destination_max_retry_interval": "1s",
            "max_short_retries": 1,
            "max_short_retry_delay": "1s",
        },
    }


def settings(folder: Path, port: int, secret: str, registrations: Sequence[Path]) -> dict[str, Any]:
    """The configuration; JSON is YAML as well."""
    return {
        "server_name": SERVER_NAME,
        "public_baseurl": f"http://127.0.0.1:{port}/",
        "listeners": [
            {
                "port": port,
                "bind_addresses": ["127.0.0.1"],
                "type": "http",
                "tls": False,
                "resources": [{"names": ["client"], "compress": False}],
            }
        ],
        "database": {"name": "sqlite3", "args": {"database": str(folder / "hs.db")}},
        "media_store_path": str(folder / "media"),
        "signing_key_path": str(folder / "signing.key"),
        "log_config": str(folder / "log.yaml"),
        "pid_file": str(folder / "pid"),
        "registration_shared_secret": secret,
        "macaroon_secret_key": "m",
        "form_secret": "f",
        "report_stats": False,
        "trusted_key_servers": [],
        "suppress_key_server_warning": True,
        "federation_domain_whitelist": [],
        "url_preview_enabled": False,
        "presence": {"enabled": False},
        "bcrypt_rounds": 4,
        "app_service_config_files": [str(path) for path in registrations],
        "rc_message": FREE,
        "rc_registration": FREE,
        "rc_room_creation": FREE,
        "rc_joins_per_room": FREE,
        "rc_joins": {"local": FREE, "remote": FREE},
        "rc_invites": {"per_room": FREE, "per_user": FREE, "per_issuer": FREE},
        "rc_login": {"address": FREE, "account": FREE, "failed_attempts": FREE},
    }


class Synapse:
    """A homeserver that is started, stopped, killed and started again on the same database."""

    def __init__(self, folder: Path, registrations: Sequence[str] = (), **changes: Any) -> None:
        """`registrations` are the texts of appservices' files; `changes` replace settings: see `federating`."""
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._folder, self._secret = folder, os.urandom(16).hex()
        self._process: subprocess.Popen[bytes] | None = None
        files = [folder / f"appservice-{number}.yaml" for number in range(len(registrations))]
        for file, text in zip(files, registrations, strict=True):
            file.write_text(text, "utf-8")
        more = changes.pop("more_listeners", [])
        config = settings(folder, self.port, self._secret, files) | changes
        config["listeners"] = [*config["listeners"], *more]
        (folder / "homeserver.yaml").write_text(json.dumps(config), "utf-8")
        key = base64.b64encode(os.urandom(32)).decode().rstrip("=")
        (folder / "signing.key").write_text(f"ed25519 a_test {key}\n", "utf-8")
        handler = {"class": "logging.FileHandler", "filename": str(folder / "hs.log")}
        logs = {"version": 1, "handlers": {"file": handler}, "root": {"level": "WARNING", "handlers": ["file"]}}
        (folder / "log.yaml").write_text(json.dumps(logs), "utf-8")

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop()

    async def start(self) -> None:
        """Start, and wait until it registers a user: only this server knows the secret."""
        self._launch()
        async with asyncio.timeout(READY_S):
            while not await self._answers():
                assert self._process
                assert self._process.poll() is None, (self._folder / "out.log").read_text("utf-8")[-3000:]
                await asyncio.sleep(0.05)

    def _launch(self) -> None:
        program = [sys.executable, "-m", "synapse.app.homeserver", "-c", str(self._folder / "homeserver.yaml")]
        with (self._folder / "out.log").open("ab") as out:
            self._process = subprocess.Popen(program, stdout=out, stderr=out)

    async def _answers(self) -> bool:
        try:
            await self.register(f"probe{os.urandom(6).hex()}", "probe")
        except aiohttp.ClientError:
            return False
        return True

    async def register(self, user: str, password: str) -> dict[str, Any]:
        """Make a user; returns what a login returns."""
        url = f"{self.url}/_synapse/admin/v1/register"
        async with aiohttp.ClientSession(raise_for_status=True) as session:
            async with session.get(url) as answer:
                nonce = (await answer.json())["nonce"]
            signed = f"{nonce}\0{user}\0{password}\0notadmin".encode()
            mac = hmac.new(self._secret.encode(), signed, hashlib.sha1).hexdigest()
            body = {"nonce": nonce, "username": user, "password": password, "admin": False, "mac": mac}
            async with session.post(url, json=body) as answer:
                return dict(await answer.json())

    def stop(self) -> None:
        """SIGTERM, and wait for the end. Idempotent."""
        if self._process and self._process.poll() is None:
            self._process.terminate()
            self._process.wait()

    async def restart(self, **changes: Any) -> None:
        """Stop, replace settings, and start on the same database."""
        self.stop()
        file = self._folder / "homeserver.yaml"
        file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | changes), "utf-8")
        await self.start()

    def forget_pushes(self) -> None:
        """Lose what was to be pushed to appservices, as a kill at the worst moment does. While it is down."""
        with closing(sqlite3.connect(self._folder / "hs.db")) as database, database:
            database.execute("DELETE FROM application_services_txns")
            database.execute("DELETE FROM application_services_state")

    def kill(self) -> None:
        """As by `kill -9`."""
        assert self._process
        self._process.kill()
        self._process.wait()
