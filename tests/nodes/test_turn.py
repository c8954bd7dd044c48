"""Whether an em answers: every rule, in tables."""

from pathlib import Path

import pytest
from harness import MESH_ID, NODE, root
from hypothesis import given
from hypothesis import strategies as st

from mesh.entries import Entry
from nodes.chatlog import Voice
from nodes.em import Em
from nodes.em_settings import EmSettings
from nodes.pattern import compile_pattern
from nodes.turn import Decision, Roster, decide
from protocol.acts import Act
from protocol.keys import NodeId


def em(name: str, **settings: object) -> Em:
    values = EmSettings.model_validate({"name": name, **settings})
    names = frozenset(called.lower() for called in (name, *values.nicknames))
    pattern = None if values.reply_on_regex is None else compile_pattern(values.reply_on_regex)
    return Em(name, Path(name), values, Voice(name, names, (), (), "b2:"), pattern, None, ())


def entry(text: str, author: str = "mara", kind: str = "say", number: int = 0, **body: object) -> Entry:
    act = root(text, number, author, kind)
    return Entry(1, "yappings", MESH_ID, NodeId(NODE.public), Act(*_fields(act), {"text": text, **body}))


def _fields(act: Act) -> tuple[object, ...]:
    return act.id, act.kind, act.author, act.refs, act.root, act.budget, act.at_ms


def decided(one: Em, heard: Entry, *others: Em, answered: str | None = None, spent: str | None = None) -> Decision:
    return decide(one, Roster([one, *others]).hear(heard, answered, spent))


ARAGO = em("arago", nicknames=["Monsieur A.", "ara"])


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("hey arago", True),
        ("arago?", True),
        ("hi arago?", True),
        ("hey ARAGO how are you", True),
        ("well, arago's right", True),
        ("arago-like", True),
        ("the paragons", False),
        ("aragorn", False),
        ("xarago", False),
        ("ara!", True),
        ("tell monsieur a. that", True),
        ("monsieur ab", False),
        ("@arago", True),
        ("@aragon", False),
        ("nothing", False),
    ],
)
def test_names_are_whole_words_anywhere_in_any_case(text: str, answers: bool) -> None:
    assert decided(ARAGO, entry(text)).answers == answers


@pytest.mark.parametrize(
    ("settings", "heard", "answered", "rule"),
    [
        ({"mute": True}, entry("aporia"), None, "muted"),
        ({"reply_on_all": True}, entry("x", author="aporia"), None, "its own words"),
        ({"reply_on_all": True}, entry("x", kind="react"), None, "a react needs no answer"),
        ({"reply_on_all": True}, entry(".psst aporia"), None, "hidden by a leading dot"),
        ({"reply_on_all": True}, entry(",psst"), None, "hidden by a leading dot"),
        ({"reply_on_name": False}, entry("aporia"), None, "nothing called for it"),
        ({"reply_on_ping": False, "reply_on_name": False}, entry("@aporia"), None, "nothing called for it"),
        ({}, entry("x"), "ruri", "nothing called for it"),
    ],
)
def test_silence_has_its_rule(settings: dict[str, object], heard: Entry, answered: str | None, rule: str) -> None:
    assert decided(em("aporia", **settings), heard, answered=answered) == Decision(False, rule)


@pytest.mark.parametrize(
    ("settings", "heard", "answered", "rule"),
    [
        ({}, entry("and you?"), "aporia", "it was answered"),
        ({"reply_on_name": False}, entry("@aporia hi"), None, "it was mentioned"),
        ({}, entry("who?", kind="ask", to="aporia"), None, "it was mentioned"),
        ({}, entry("aporia!"), None, "its name was said"),
        ({"reply_on_regex": "t[ae]sk"}, entry("a task"), None, "its pattern matched"),
        ({"reply_on_floor": True}, entry("hello"), None, "nobody was addressed, and it was its turn"),
        ({"reply_on_all": True}, entry("...well"), None, "it answers everything"),
        ({"reply_on_random": 1}, entry("x"), None, "by chance, 1 in 1"),
    ],
)
def test_an_answer_has_its_rule(settings: dict[str, object], heard: Entry, answered: str | None, rule: str) -> None:
    assert decided(em("aporia", **settings), heard, answered=answered) == Decision(True, rule)


def test_a_spent_chain_silences_only_those_who_would_have_spoken() -> None:
    assert decided(em("aporia"), entry("aporia"), spent="no hops left").rule == "the chain is spent: no hops left"
    assert decided(em("aporia"), entry("x"), spent="no hops left").rule == "nothing called for it"


@given(st.text(max_size=40), st.integers(0, 2**63))
def test_when_nobody_is_addressed_exactly_one_takes_the_floor(text: str, number: int) -> None:
    ems = [em(name, reply_on_floor=True) for name in ("qqa", "qqb", "qqc")]
    heard = Roster([*ems, em("qqd", reply_on_floor=True, mute=True)]).hear(entry(text, number=number), None, None)
    hidden = text[:1] in {".", ","} and text[1:2] not in {".", ","}
    assert sum(decide(one, heard).answers for one in ems) == (0 if hidden else 1)


def test_the_floor_goes_round_and_never_to_the_speaker() -> None:
    ems = [em(name, reply_on_floor=True) for name in ("aporia", "ruri", "teapot")]
    takers = [Roster(ems).hear(entry("x", "ruri", number=number), None, None).floor for number in range(200)]
    assert {takers.count("aporia") > 70, takers.count("teapot") > 70, "ruri" not in takers} == {True}


def test_nobody_takes_the_floor_from_one_who_is_addressed() -> None:
    ems = [em("aporia", reply_on_floor=True), em("ruri", reply_on_floor=True)]
    heard = Roster(ems).hear(entry("aporia?"), None, None)
    assert [decide(one, heard).answers for one in ems] == [True, False]


def test_chance_is_the_same_for_the_same_act_and_about_one_in_n() -> None:
    one = em("aporia", reply_on_random=4)
    outcomes = [decided(one, entry("x", number=number)).answers for number in range(800)]
    assert outcomes == [decided(one, entry("x", number=number)).answers for number in range(800)]
    assert 140 < sum(outcomes) < 260


def test_somebody_of_its_name_elsewhere_is_another() -> None:
    """Two owners' ems of one name talk to each other; what an em said itself it never answers."""
    said = entry("hey arago", "arago")
    assert decided(ARAGO, said) == Decision(False, "its own words")
    assert decide(ARAGO, Roster([ARAGO]).hear(said, None, None, is_ours=False)).answers
