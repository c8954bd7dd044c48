"""What the doctor finds in what a home holds: its database, its names, its settings against the node that runs."""

import os
from collections.abc import Iterable
from typing import Final

from mesh.errors import StoreFailed
from mesh.store import Store
from nodes.doctor import Check
from nodes.em import Em
from nodes.home import Home, Running
from nodes.records import damaged

MAX_CHECKED_BYTES: Final = 256 << 20  # of a database that is read through: a second or two; of others a query is tried


def check_database(home: Home) -> Check:
    """Whether what the node has recorded can be read. Never writes."""
    path = home.database
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return Check("database", "ok", "none yet: no node has run here")
    except OSError as error:
        return Check("database", "fail", f"{path}: {error.strerror}; check its owner and permissions")
    if size and not _reads(home, whole=size <= MAX_CHECKED_BYTES):
        return Check("database", "fail", damaged(path))
    if not os.access(path, os.W_OK):
        return Check("database", "fail", f"{path} cannot be written; run: chmod 600 {path}")
    return Check("database", "ok", f"{path} can be read")


def _reads(home: Home, *, whole: bool) -> bool:
    try:
        store = Store(home.database, read_only=True)
    except StoreFailed:
        return False
    try:
        store.one("SELECT count(*) FROM outbox")
        return not whole or store.one("PRAGMA quick_check(1)") == ("ok",)
    except StoreFailed:
        return False
    finally:
        store.close()


def check_models(problems: Iterable[str]) -> list[Check]:
    """Whether every em has a model, from what nodes.commands.assembly knows of them: one check for each problem."""
    return [Check("models", "fail", problem) for problem in problems] or [Check("models", "ok", "every em has one")]


def check_changed(home: Home, running: Running) -> list[Check]:
    """Whether the settings were changed since the node has read them; nothing when they were not."""
    try:
        changed_ms = (home.path / "mesh.yaml").stat().st_mtime_ns // 1_000_000
    except OSError:
        return []
    if changed_ms <= running.started_ms:
        return []
    return [Check("settings", "warn", "mesh.yaml was changed since the node was started; restart the node to use it")]


def shared_names(ems: Iterable[Em], human: str | None) -> list[str]:
    """A sentence for every name that more than one em answers to, or that is the person's own (None: not known)."""
    owners: dict[str, list[str]] = {}
    for em in ems:
        for name in em.voice.names | {em.name}:
            owners.setdefault(name, []).append(em.name)
    told = [
        f"{' and '.join(sorted(names))} both answer to {name!a}; give one of them another name or nickname"
        for name, names in sorted(owners.items())
        if len(names) > 1
    ]
    if human is not None and human.lower() in owners:
        called = " and ".join(sorted(owners[human.lower()]))
        told.append(f"{called} answers to {human!a}, which is your own name (`human` in mesh.yaml); change one of them")
    return told
