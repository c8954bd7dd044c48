"""A picture's whole way: from `mesh say --image` to the vendor, and back to `mesh why`."""

import asyncio
import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from images import image
from openai_server import Answer, FakeOpenAI
from process import client, make_home, mesh, settled, up

from nodes.home import Home
from nodes.picture import Picture

CAT = image("webp", size=(64, 48))


def home_with(path: Path, server: FakeOpenAI) -> Home:
    """Two ems that answer everything: one whose model takes pictures, one whose does not."""
    vendor = {"base_url": server.url, "provides": ["eye-*", "ear-*"], "images": ["eye-*"]}
    ems = {name: f"reply_on_all: true\nmodel: {model}\n" for name, model in (("seer", "eye-1"), ("hearer", "ear-1"))}
    budget = {"yappings": {"budget": {"hops": 1, "acts": 8}}}
    return make_home(path, ems, {"models": {"vendors": {"v": vendor}}, "basins": budget})


async def run(*words: str | Path, code: int = 0) -> str:
    done = await asyncio.to_thread(mesh, *words)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def prompts(server: FakeOpenAI, text: str) -> dict[str, Any]:
    """What each model was sent in answer to this text, by model: the last turn's content."""
    sent = {seen.body["model"]: seen.body["messages"][-1]["content"] for seen in server.requests}
    assert all(text in json.dumps(content) for content in sent.values())
    return sent


async def test_a_picture_is_seen_by_the_model_that_takes_pictures(tmp_path: Path) -> None:
    (tmp_path / "a cat.webp").write_bytes(CAT)
    sha256 = hashlib.sha256(CAT).hexdigest()
    async with FakeOpenAI() as server:
        server.play(*[Answer()] * 8)
        home = home_with(tmp_path / "home", server)
        here = ("--home", home.path)
        async with up(home) as node, client(home) as one:
            said = json.loads(await run("say", "yappings", "who?", "--image", tmp_path / "a cat.webp", "--json", *here))
            named = {"sha256": sha256, "mime": "image/webp", "bytes": len(CAT), "name": "a cat.webp"}
            assert said["media"] == [named]
            history = await settled(one)
            sent = prompts(server, "who? [image: a cat.webp]")
            assert sent["ear-1"] == "<mara> who? [image: a cat.webp]\n"
            text, picture = sent["eye-1"]
            assert text == {"type": "text", "text": "<mara> who? [image: a cat.webp]\n"}
            head, _, data = picture["image_url"]["url"].partition(",")
            assert (head, base64.b64decode(data)) == ("data:image/webp;base64", CAT)
            made = {act["author"]: act["id"] for act in history if said["id"] in act["refs"]}
            why = json.loads(await run("why", made["seer"], "--json", *here))
            (shown,) = [span for turn in why["made"]["prompt"] for span in turn["spans"] if "pictures" in span]
            assert shown["pictures"] == [sha256]
            assert data[:60] not in json.dumps(why)
            assert f"sha256 {sha256}, image/webp" in await run("why", made["seer"], "--prompt", *here)
            assert "sha256" not in await run("why", made["hearer"], "--prompt", *here)
            assert await node.stop() == 0


async def test_a_picture_that_is_not_here_and_files_that_are_none(tmp_path: Path) -> None:
    async with FakeOpenAI() as server:
        server.play(*[Answer()] * 8)
        home = home_with(tmp_path / "home", server)
        here = ("--home", home.path)
        async with up(home) as node, client(home) as one:
            await one.say("yappings", "gone", media=[Picture("0" * 64, "image/png", 9, "gone.png")])
            await settled(one)
            line = "<mara> gone [image: gone.png]\n"
            assert prompts(server, "gone") == {"eye-1": line, "ear-1": line}
            (tmp_path / "x.png").write_text("<svg/>")
            told = await run("say", "yappings", "x", "--image", tmp_path / "x.png", *here, code=1)
            assert told == "mesh: the picture 'x.png' is no PNG, JPEG, GIF or WebP; no other pictures are taken\n"
            assert "cannot be read" in await run("say", "yappings", "--image", tmp_path / "none", *here, code=2)
            assert "TEXT is missing" in await run("say", "yappings", *here, code=2)
            assert not home.media.exists()
            (tmp_path / "x.png").write_bytes(image())
            await run("say", "yappings", "--image", tmp_path / "x.png", *here)
            assert (await settled(one))[-3]["text"] == "x.png"
            assert await node.stop() == 0


async def test_too_many_pictures_are_refused_before_any_is_read(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", {"seer": ""})
    images = [word for number in range(9) for word in ("--image", f"{number}.png")]
    assert "9 pictures are too many for one act" in await run("say", "yappings", *images, "--home", home.path, code=2)
