"""Words at work: lines of a reply that are acts, what prompts say about words, what two nodes tell each other."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from harness import write_em
from hypothesis import given
from hypothesis import strategies as st
from owners import Owner, link, owners, until

from mesh.entries import Entry
from mesh.links.messages import BadMessage
from nodes.em import load_em
from nodes.errors import NodeError
from nodes.explain import as_text, why
from nodes.models.scripted import Scripted
from nodes.prompt import WORDS_HEAD, build
from nodes.spoken import HOW, MAX_SPOKEN, WISHES, Spoken, instruction, split
from protocol.acts import check_act
from protocol.errors import BadTerm
from protocol.terms import MAX_HELD, new_term, write_term
from protocol.vocabulary import BODIES, Digest, digest

ALL = tuple(HOW)
EBB = new_term("ebb", "the tide going out")
KNOWN = {"ebb": digest(EBB)}


# Lines that are acts


@pytest.mark.parametrize(
    ("line", "kind", "text"),
    [
        ("/propose lumen: light that stays", "propose", "lumen: light that stays"),
        ("  /propose  low tide :  the sea,  gone ", "propose", "low tide: the sea, gone"),
        ("/adopt ebb", "adopt", "ebb"),
        ("/contest ebb: a verb", "contest", "ebb: a verb"),
        ("/share tea with bob", "share", "/share tea with bob"),
        ("/share tea with bob to write", "share", "/share tea with bob to write"),
        ("/unshare tea with bob", "unshare", "/unshare tea with bob"),
        ("/invite bob", "invite", "/invite bob"),
        ("/leave bob", "leave", "/leave bob"),
    ],
)
def test_a_line_that_is_an_act(line: str, kind: str, text: str) -> None:
    words, acts = split(f"before\n{line}\nafter", ALL, KNOWN.get)
    assert words == "before\nafter"
    assert [(act.kind, act.text) for act in acts] == [(kind, text)]
    assert split(line, [one for one in ALL if one != kind], KNOWN.get) == (line, [])


@pytest.mark.parametrize(
    "line",
    [
        "/say hello",
        "/redact 00ff",
        "/link bob",
        "/propose lumen",
        "/propose : nothing",
        "/propose <b>: markup",
        "/propose lumen:",
        "/adopt unheard-of",
        "/contest unheard-of: a verb",
        "/share tea",
        "/share ../etc with bob",
        "/unshare tea with bob to write",
        "/invite two words",
        "/leave",
        "propose lumen: no slash",
        "I would /adopt ebb",
        "//adopt ebb",
    ],
)
def test_a_line_that_is_no_act_stays_as_it_was_said(line: str) -> None:
    assert split(line, ALL, KNOWN.get) == (line, [])


def test_a_reply_of_wishes_alone_keeps_its_words_and_only_a_few_lines_count() -> None:
    assert split("/invite bob", ALL, KNOWN.get) == (
        "/invite bob",
        [Spoken("invite", "/invite bob", {"peer": "bob"}, WISHES)],
    )
    words, acts = split("\n".join(["/adopt ebb"] * (MAX_SPOKEN + 2)), ALL, KNOWN.get)
    assert (words, len(acts)) == ("/adopt ebb\n/adopt ebb", MAX_SPOKEN)


@given(st.text(max_size=300) | st.lists(st.sampled_from([*HOW.values(), "/adopt ebb", "hm", ""])).map("\n".join))
def test_whatever_an_em_writes_comes_to_words_and_lawful_acts(text: str) -> None:
    """Nothing is lost but the lines that became acts, and no other kind of act comes of it."""
    words, acts = split(text, ALL, KNOWN.get)
    assert set(words.split("\n")) <= {*text.split("\n"), *text.strip().split("\n"), ""}
    for act in acts:
        assert act.kind in ALL
        assert (act.basin == WISHES) is (act.kind in ("share", "unshare", "invite", "leave"))
        assert "mesh" not in act.body, "a wish never holds what a statement counts by"
        msgspec.convert(act.body, BODIES[act.kind])


def test_an_em_is_told_only_of_lines_that_it_may_write() -> None:
    assert instruction(()) == ""
    assert "/propose WORD" in instruction(["propose"])
    assert "/leave" not in instruction(["propose"])


# Ems that speak of words


def acts_of(owner: Owner, kind: str, basin: str = "tea") -> list[Entry]:
    return [entry for entry in owner.entries(basin) if entry.act.kind == kind]


CHATTY = "reply_on_name: true\nbasins: [tea]\nacts: [propose, adopt, contest, invite]\n"


async def test_an_ems_lines_become_acts_in_the_chain_and_the_rest_is_said(tmp_path: Path) -> None:
    async with owners(tmp_path, "ada") as (ada,):
        ada.em("em-ada", CHATTY)
        ada.model = Scripted(["The sea is gone.\n/propose ebb: the tide going out\n/invite bob\n/say no"])
        async with ada.up():
            await ada.say("em-ada?")
            await until(lambda: len(ada.entries("tea")) == 3 and len(ada.entries(WISHES)) == 1)
            question, said, proposed = ada.entries("tea")
            (wish,) = ada.entries(WISHES)
            assert said.act.text == "The sea is gone.\n/say no"
            assert (proposed.act.kind, proposed.act.text) == ("propose", "ebb: the tide going out")
            assert (wish.act.kind, wish.act.body) == ("invite", {"text": "/invite bob", "peer": "bob"})
            for entry in (said, proposed, wish):
                assert entry.act.author == "em-ada"
                assert entry.act.refs == [question.act.id]
                assert entry.act.budget.hops == question.act.budget.hops - 1
                check_act(entry.act)
            acts_left = [entry.act.budget.acts for entry in (question, said, proposed, wish)]
            assert acts_left == [8, 7, 6, 5], "each counts in the chain's budget"
            assert ada.node.runtime.chains.used(question.act.root)[0] == 3
            (told,) = (await ada.vocab("list"))["readings"]
            assert (told["name"], told["here"]) == ("ebb", False)
            assert [one["author"] for one in told["proposed"]] == ["em-ada"]


async def test_a_reply_of_acts_alone_is_the_turns_reply_and_a_spent_chain_ends_them(tmp_path: Path) -> None:
    async with owners(tmp_path, "ada", ems=False) as (ada,):
        ada.em("em-ada", CHATTY)
        ada.config = type(ada.config).model_validate(
            ada.config.model_dump() | {"basins": {"tea": {"budget": {"hops": 2, "acts": 2}}}}
        )
        ada.model = Scripted(["/propose one: 1\n/propose two: 2\n/propose three: 3"])
        async with ada.up():
            await ada.say("em-ada?")
            await until(lambda: len(acts_of(ada, "propose")) == 2)
            first, second = acts_of(ada, "propose")
            assert [first.act.text, second.act.text] == ["one: 1", "two: 2"]
            assert second.act.budget.acts == 0
            store = ada.node.ground.store
            assert store.one("SELECT id, state FROM turns") == (first.act.id, "spoken")
            assert why(store, first.act.id).made is not None


async def test_what_an_em_does_is_said_once_whenever_the_node_is_cut_off(tmp_path: Path) -> None:
    """Cut off between the decision and the reply, and between the reply and the bus: each act once, all or none."""
    async with owners(tmp_path, "ada") as (ada,):
        ada.em("em-ada", CHATTY)
        ada.model = Scripted(["words\n/propose ebb: the tide going out\n/adopt ebb\n/propose flow: it comes back"])
        async with ada.up():
            await ada.say("em-ada?")
            await until(lambda: ada.model.requests)
        for _ in range(3):
            async with ada.up():
                await until(lambda: len(ada.entries("tea")) >= 4)
                said = [(entry.act.kind, entry.act.id) for entry in ada.entries("tea")]
        assert [kind for kind, _ in said] == ["say", "say", "propose", "propose"]
        assert len(set(said)) == 4


async def test_an_em_reads_what_is_said_about_words_and_acts_of_kinds_that_people_made(tmp_path: Path) -> None:
    async with owners(tmp_path, "ada") as (ada,):
        ada.em("em-ada", "reply_on_name: true\nbasins: [tea]\n")
        async with ada.up():
            await ada.vocab("propose", name="ebb", definition="the tide going out", basin="tea")
            await ada.node.say("tea", "the lamp is out, em-ada", [], "lumen")
            await until(lambda: ada.model.requests)
            prompt = "".join(turn.text for turn in ada.model.requests[0].turns)
            assert "<ada-person> /propose ebb: the tide going out\n" in prompt
            assert "<ada-person> /lumen the lamp is out, em-ada\n" in prompt


# What a prompt says about words


async def test_a_prompt_explains_the_adopted_words_of_what_is_answered_and_why_shows_it(tmp_path: Path) -> None:
    async with owners(tmp_path, "ada") as (ada,):
        ada.em("em-ada", "reply_on_name: true\nbasins: [tea]\nvocabulary: true\n")
        async with ada.up():
            for name, definition in [("Low Tide", "the sea, gone"), ("ebb", "going out"), ("unused", "not adopted")]:
                await ada.vocab("propose", name=name, definition=definition)
            for name in ("low tide", "ebb"):
                assert (await ada.vocab("adopt", word=name))["here"]
            await ada.say("em-ada, low TIDE is unused; an ebbing")
            await until(lambda: "ada's em says so" in ada.heard())
            spans = [span for turn in ada.model.requests[0].turns for span in turn.spans]
            shown = [(span.source, span.text) for span in spans if span.source.startswith("word:")]
            assert shown == [("word:low tide", 'Low Tide: "the sea, gone"\n')]
            assert WORDS_HEAD in {span.text for span in spans[-4:]}, "next to the end"
            known = why(ada.node.ground.store, ada.entries("tea")[-1].act.id)
            assert any("word:low tide" in line for line in as_text(known, ada.mesh))


async def test_a_contested_word_is_explained_with_both_readings_and_who_uses_which(tmp_path: Path) -> None:
    async with owners(tmp_path, "ada", "bob") as (ada, bob), ada.up(), bob.up():
        await link(ada, bob, words="write")
        await ada.vocab("propose", name="ebb", definition="the tide going out")
        await ada.vocab("adopt", word="ebb")
        await until(lambda: bob.words.lexicon.find("ebb"))
        await bob.vocab("contest", word="ebb", definition="a rest")
        await until(lambda: len(ada.words.lexicon.find("ebb")) == 2)
        await until(lambda: bob.mesh in ada.words.lexicon.reading(ada.words.lexicon.find("ebb")[1]).used)
        told = 'ebb, which is read in several ways: "the tide going out" (used here); "a rest" (used elsewhere)'
        assert ada.node.runtime.words.glosses("at Ebb", "tea") == [("ebb", told)]
        shown = await ada.vocab("show", word="EBB")
        assert shown["contested"]
        assert [[one["called"] for one in reading["used"]] for reading in shown["readings"]] == [["ada"], ["bob"]]
        with pytest.raises(NodeError, match="read in 2 ways"):
            await ada.vocab("adopt", word="ebb")


def test_words_that_do_not_fit_are_left_out_and_nothing_is_said_without_any(tmp_path: Path) -> None:
    write_em(tmp_path, "aporia", "vocabulary: true\nprompt_max_tokens: 400\n")
    em = load_em(tmp_path / "aporia")
    lines = [line for scene in em.voice.chat for line in scene.lines]
    long = [("a", "a: " + "x" * 80), ("b", "b: " + "y" * 4000), ("c", "c: short")]
    turns = build(em, "chat", 2, lines, [], None, long).turns
    shown = [span.source for turn in turns for span in turn.spans if span.source.startswith("word:")]
    assert shown in (["word:a"], [])
    assert WORDS_HEAD not in "".join(turn.text for turn in build(em, "chat", 2, lines, []).turns)


# What two nodes tell each other


async def test_what_is_adopted_in_a_basin_of_ones_own_is_not_told(tmp_path: Path) -> None:
    async with owners(tmp_path, "ada", "bob") as (ada, bob), ada.up(), bob.up():
        await link(ada, bob)
        for name, basin in (("open", "words"), ("here", "tea"), ("secret", "diary")):
            await ada.vocab("propose", name=name, definition=f"about {basin}", basin=basin)
            await ada.vocab("adopt", word=name)
        await until(lambda: len(bob.words.lexicon.held(ada.mesh)) == 2)
        await until(lambda: len(bob.words.lexicon.names()) == 2)
        assert bob.words.lexicon.names() == ["here", "open"]
        secret = ada.words.lexicon.find("secret")[0]
        bob.peers.tell(ada.mesh, "words", msgspec.msgpack.encode(["ask", [secret]]))
        await ada.ask("share", peer="bob", basin="diary")
        await bob.ask("take", peer="ada", basin="diary")
        await until(lambda: len(bob.words.lexicon.names()) == 3)
        await ada.vocab("retire", word="here")
        await until(lambda: len(bob.words.lexicon.held(ada.mesh)) == 2)


async def test_peers_who_share_no_basin_of_words_know_them_too_and_after_a_restart(tmp_path: Path) -> None:
    """More than one message's worth of words; told again to whoever was away."""
    async with owners(tmp_path, "ada", "bob") as (ada, bob):
        async with ada.up():
            port = ada.port
            for number in range(70):
                definition = f"number {number} " + "and so on " * 90
                await ada.vocab("propose", name=f"word{number}", definition=definition)
                await ada.vocab("adopt", word=f"word{number}")
            async with bob.up():
                await link(ada, bob)
                await until(lambda: len(bob.words.lexicon.terms) == 70)
        async with bob.up():
            assert len(bob.words.lexicon.held(ada.mesh)) == 70
            told = await bob.vocab("diff", peer="ada")
            assert [len(told[key]) for key in ("only_here", "only_there", "both")] == [0, 70, 0]
            async with ada.up(port):
                await bob.vocab("adopt", word="word7")
                await ada.vocab("retire", word="word8")
                await until(lambda: len(bob.words.lexicon.held(ada.mesh)) == 69)
                await until(lambda: ada.words.shared(bob.mesh))
                told = await ada.vocab("diff", peer="bob")
                assert [one["name"] for one in told["both"]] == ["word7"]
                assert bob.words.shared(ada.mesh) == ada.words.shared(bob.mesh) == {told["both"][0]["digest"]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 100,
        msgspec.msgpack.encode(["use", ["b2:nothing"], False]),
        msgspec.msgpack.encode(["use", ["b2:" + "0" * 64] * (MAX_HELD + 1), False]),
        msgspec.msgpack.encode(["adopt", []]),
        msgspec.msgpack.encode(["terms", [b"{}"]]),
        msgspec.msgpack.encode(["terms", [b"[" * 4000]]),
        b"\x91" * 5000,
    ],
)
async def test_nonsense_from_a_peer_is_refused(tmp_path: Path, data: bytes) -> None:
    async with owners(tmp_path, "ada") as (ada,), ada.up():
        with pytest.raises(BadMessage):
            ada.words.told(ada.mesh, data)
        assert not ada.words.lexicon.terms


async def test_a_peer_can_neither_push_terms_nor_give_another_under_a_digest(tmp_path: Path) -> None:
    async with owners(tmp_path, "ada", "bob") as (ada, bob), ada.up(), bob.up():
        await link(ada, bob)
        words, other = ada.words, new_term("flow", "in")
        words.told(bob.mesh, msgspec.msgpack.encode(["terms", [write_term(EBB)]]))
        assert not words.lexicon.terms, "nobody asked for it"
        words.told(bob.mesh, msgspec.msgpack.encode(["use", [digest(EBB)], False]))
        words.told(bob.mesh, msgspec.msgpack.encode(["terms", [write_term(other), write_term(EBB)]]))
        assert words.lexicon.terms == {digest(EBB): EBB}
        assert not words.own()
        assert not words.lexicon.uses(ada.mesh), "and nothing was adopted by it"


# Acts of kinds that people made


async def test_an_act_of_a_coined_kind_is_itself_to_those_who_adopted_it_and_a_say_to_others(tmp_path: Path) -> None:
    async with owners(tmp_path, "ada", "bob") as (ada, bob), ada.up(), bob.up():
        await link(ada, bob)
        await ada.vocab("propose", name="lumen", definition="light that stays", kind="act")
        await ada.vocab("adopt", word="lumen")
        await ada.node.say("tea", "before", [], "lumen")
        await until(lambda: "before" in bob.heard())
        await until(lambda: bob.words.lexicon.find("lumen"))
        await bob.vocab("adopt", word="lumen")
        await until(lambda: ada.words.shared(bob.mesh))
        await ada.node.say("tea", "after", [], "lumen")
        await until(lambda: "after" in bob.heard())
        assert [(entry.act.kind, entry.act.text) for entry in bob.entries()] == [("say", "before"), ("lumen", "after")]
        assert [entry.act.kind for entry in ada.entries()] == ["lumen", "lumen"]
        assert bob.entries()[0].act.body["kind"] == "lumen"
        assert bob.refused(ada) == {}


# What a person asks for


@pytest.mark.parametrize(
    ("operation", "given", "why"),
    [
        ("show", {"word": "nothing"}, "put forward"),
        ("adopt", {"word": "nothing"}, "no reading"),
        ("retire", {"word": "ebb"}, "not in use"),
        ("contest", {"word": "ebb", "definition": "the tide going out"}, "already"),
        ("diff", {"peer": "nobody"}, "no peer"),
    ],
)
async def test_what_cannot_be_done_is_said_in_a_sentence(
    tmp_path: Path, operation: str, given: dict[str, Any], why: str
) -> None:
    async with owners(tmp_path, "ada") as (ada,), ada.up():
        await ada.vocab("propose", name="ebb", definition="the tide going out")
        with pytest.raises(NodeError, match=re.escape(why)):
            await ada.vocab(operation, **given)
        with pytest.raises(BadTerm):
            await ada.vocab("propose", name="say", definition="x", kind="act")


async def test_a_person_changes_their_mind_as_often_as_they_like_also_while_the_clock_stands(tmp_path: Path) -> None:
    async with owners(tmp_path, "ada") as (ada,):
        start = ada.now()
        ada.clock = lambda: start
        async with ada.up():
            await ada.vocab("propose", name="ebb", definition="the tide going out")
            for _ in range(3):
                assert (await ada.vocab("adopt", word="ebb"))["here"]
                assert not (await ada.vocab("retire", word="ebb"))["here"]
            core = await ada.vocab("show", word="ask")
            assert core["core"]["definition"].startswith("Asks")


async def test_what_was_proposed_and_taken_back_is_forgotten(tmp_path: Path) -> None:
    async with owners(tmp_path, "ada") as (ada,), ada.up():
        told = await ada.vocab("propose", name="secret", definition="hidden")
        await ada.node.redact(bytes.fromhex(told["id"]), "said too much")
        await until(lambda: not ada.words.lexicon.terms)
        assert not ada.node.ground.store.rows("SELECT term FROM terms")
        assert not ada.node.ground.store.rows("SELECT said FROM term_acts")


def test_a_digest_is_told_apart_by_its_kind() -> None:
    assert digest(new_term("lumen", "x")) != digest(new_term("lumen", "x", "act")) != Digest("")
