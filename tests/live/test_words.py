"""docs/words.md, whose commands run here as two linked persons would type them; and the example's ems coin words."""

import asyncio
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from owners import Owner, owners, until
from pages import told, typed
from process import client, make_home, up

from nodes.home import Home
from nodes.models.scripted import Scripted

ROOT = Path(__file__).parent.parent.parent
COINING = ROOT / "examples" / "coining"
PATIENCE_S = 30


async def asked(home: Home, operation: str, until: Callable[[dict[str, Any]], object], **given: Any) -> dict[str, Any]:
    """Ask the node until its answer is as wanted."""
    async with client(home) as one, asyncio.timeout(PATIENCE_S):
        while not until(answer := await one.request(f"vocab_{operation}", given)):
            await asyncio.sleep(0.02)
    return answer


async def heard(home: Home, text: str) -> dict[str, Any]:
    async with client(home) as one, asyncio.timeout(PATIENCE_S):
        while not (found := [act for act in await one.history("yappings") if act["text"] == text]):
            await asyncio.sleep(0.02)
    return found[0]


async def test_the_page_as_two_linked_persons_would_type_it(tmp_path: Path) -> None:
    """And then a kind of act: plain words to who does not use it, itself to who does; readable at every place."""
    quiet = {"aporia": "reply_on_name: false\n"}
    you = make_home(tmp_path / "you", quiet, {"links": {"listen": "127.0.0.1:0"}})
    they = make_home(tmp_path / "they", quiet, {"name": "home", "human": "bo"})
    homes = {"you": you, "they": they}
    async with up(you), up(they):
        code = (await typed(you, "peer", "invite", "--give", "yappings:write")).splitlines()[0]
        await typed(they, "peer", "accept", "--yes", code)
        seen = dict[str, str]()
        for who, words in told("words.md"):
            if words == ["vocab", "adopt", "ebb"] and who == "they":
                await asked(they, "list", lambda answer: answer["readings"])
            if words[1] == "diff" and who == "they":
                await asked(they, "diff", lambda answer: answer["told"], peer="amp")
            if words[1] == "diff" and who == "you":
                await asked(you, "diff", lambda answer: answer["contested"], peer="home")
            seen[f"{who} {words[1]}"] = await typed(homes[who], *words)
        assert "ebb is put forward in words" in seen["you propose"]
        assert re.search(r"ebb +b2:\w{12} +the tide going out +amp", seen["you list"])
        assert "You use ebb now: the tide going out" in seen["you adopt"]
        assert re.search(r"both +ebb", seen["they diff"])
        assert "You read ebb otherwise now: a rest between two waves" in seen["they contest"]
        assert "Read in more than one way: ebb" in seen["you diff"]
        assert "You use ebb no more" in seen["they retire"]
        await coined(you, they)


async def coined(you: Home, they: Home) -> None:
    async with client(you) as one, client(they) as other:
        await one.request("vocab_propose", {"name": "lumen", "definition": "light that stays", "kind": "act"})
        await one.request("vocab_adopt", {"word": "lumen"})
        await one.say("yappings", "the lamp is out", kind="lumen")
        assert (await heard(they, "the lamp is out"))["kind"] == "say"
        await asked(they, "list", lambda answer: [each for each in answer["readings"] if each["name"] == "lumen"])
        await other.request("vocab_adopt", {"word": "lumen"})
        told = await asked(you, "diff", lambda answer: answer["both"], peer="home")
        assert [each["name"] for each in told["both"]] == ["lumen"]
        await one.say("yappings", "and it is still bright", kind="lumen")
        assert (await heard(they, "and it is still bright"))["kind"] == "lumen"
    shown = await typed(they, "basin", "show", "yappings")
    assert re.search(r"mara\S*: the lamp is out\n", shown)
    assert re.search(r"mara\S* \(lumen\): and it is still bright\n", shown)


async def test_the_examples_ems_coin_a_word_that_a_person_adopts_and_the_next_prompt_explains_it(
    tmp_path: Path,
) -> None:
    """The folders and the basin of examples/coining as they are; a script in place of the model."""
    async with owners(tmp_path, "ada") as (ada,):
        shutil.copytree(COINING / "ems", ada.ems, dirs_exist_ok=True)
        basins = yaml.safe_load((COINING / "mesh.yaml").read_text("utf-8"))["basins"]
        ada.config = type(ada.config).model_validate(ada.config.model_dump() | {"basins": basins})
        ada.model = Scripted(
            ["It lasts for three breaths.\n/propose selvage: foam that a wave leaves\nharbour?"],
            ["Weed as well.\n/contest selvage: whatever the sea leaves"],
            ["tide is right"],
            ["there it is"],
        )
        async with ada.up():
            await ada.say("tide, what stays when a wave has gone?", "shore")
            await until(lambda: proposed(ada) == 2)
            readings = (await ada.vocab("list"))["readings"]
            assert [[one["author"] for one in each["proposed"]] for each in readings] == [["tide"], ["harbour"]]
            assert [[one["author"] for one in each["contested"]] for each in readings] == [["harbour"], []]
            assert not any(each["here"] for each in readings)
            await ada.vocab("adopt", word=readings[0]["digest"])
            await ada.say("tide, show me the selvage", "shore")
            await until(lambda: answering(ada, "show me the selvage"))
            prompt = answering(ada, "show me the selvage")
            assert "/propose WORD: what it means" in prompt
            assert (
                'selvage, which is read in several ways: "foam that a wave leaves" (used here);'
                ' "whatever the sea leaves" (used by nobody known here)\n'
            ) in prompt


def proposed(owner: Owner) -> int:
    return len(owner.words.lexicon.find("selvage"))


def answering(owner: Owner, text: str) -> str:
    """The prompt that ends with this text."""
    prompts = ("".join(turn.text for turn in request.turns) for request in owner.model.requests)
    return next((prompt for prompt in prompts if prompt.endswith(f"{text}\n")), "")
