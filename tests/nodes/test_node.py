"""A node and its em folders: what changes is taken up, and a slip silences nobody."""

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness import World, quiet, write_em
from structlog.testing import capture_logs

from mesh.bus.memory import MemoryBroker
from mesh.entries import recent
from nodes.models.scripted import Scripted
from nodes.node import Node


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with MemoryBroker() as broker:
        yield World(tmp_path, broker)


def remembered(node: Node) -> list[str]:
    return [line.text for scene in node.runtime.ems["aporia"].voice.memory for line in scene.lines]


@pytest.mark.parametrize("folder", ["aporia.chr", "The Aporia.chr"])
async def test_a_change_in_a_memory_file_is_taken_up(world: World, folder: str) -> None:
    write_em(world.ems, "aporia", "name: The Aporia\n")
    notes = world.ems / "aporia" / folder / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("before")
    async with world.node(Scripted(["x"])) as node:
        notes.write_text("afterwards")
        assert await node.load()
        assert remembered(node) == ["afterwards"]
        stat = notes.stat()
        notes.write_text("after words")  # the time of writing alone may be too coarse, or be set back
        os.utime(notes, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert await node.load()
        assert remembered(node) == ["after words"]
        assert not await node.load()


async def test_an_em_goes_on_as_it_was_while_its_settings_are_broken(world: World) -> None:
    write_em(world.ems, "aporia")
    write_em(world.ems, "ruri")
    config = world.ems / "aporia" / "config.yaml"
    async with world.node(Scripted(["Still here."])) as node:
        config.write_text("temprature: 1\n")
        with capture_logs() as logs:
            for number in range(3):
                (world.ems / "ruri" / "chat.txt").write_text(f"<ruri> {number} {'!' * number}\n")
                assert await node.load()
        assert len([log for log in logs if "temprature" in log.get("problem", "")]) == 1
        await node.say("yappings", "aporia?", [])
        await quiet(node)
        assert {entry.act.author for entry in recent(node.ground.store, "yappings", 9)} == {"mara", "aporia"}
        assert set(node.runtime.ems) == {"aporia", "ruri"}
        config.write_text("temperature: 0.5\n")
        assert await node.load()
        assert node.runtime.ems["aporia"].settings.temperature == 0.5


async def test_a_problem_that_stays_is_told_once(world: World) -> None:
    write_em(world.ems, "aporia", "temprature: 1\n")
    write_em(world.ems, "ruri")
    with capture_logs() as logs:
        async with world.node(Scripted(["x"])) as node:
            for number in range(3):
                (world.ems / "ruri" / "chat.txt").write_text(f"<ruri> hello{'!' * number}\n")
                assert await node.load()
            assert set(node.runtime.ems) == {"ruri"}
    assert len([log for log in logs if "temprature" in log.get("problem", "")]) == 1


async def test_an_em_whose_folder_is_gone_is_gone(world: World) -> None:
    write_em(world.ems, "aporia")
    write_em(world.ems, "ruri")
    async with world.node(Scripted(["x"])) as node:
        shutil.rmtree(world.ems / "aporia")
        (world.ems / "aporia").write_text("a file now")
        shutil.rmtree(world.ems / "ruri")
        (world.ems / "ruri").symlink_to(world.ems / "nowhere")
        assert await node.load()
        assert set(node.runtime.ems) == set()
