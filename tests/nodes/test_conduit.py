"""The conduit: names, routes, stop sequences, limits, counts."""

import asyncio
from collections.abc import Mapping
from contextlib import aclosing, suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from nodes.chatlog import Line, Voice
from nodes.config import MeshConfig
from nodes.errors import ConfigError, ModelRefused, ModelUnavailable
from nodes.models import conduit as module
from nodes.models.base import PICTURE_TOKENS, Model, Request, Span, Turn, Usage, estimate
from nodes.models.conduit import ECHO, MAX_CHARS_PER_TOKEN, Conduit, ModelName, StopFilter, Total, Vendor, connect
from nodes.models.gate import Gate
from nodes.models.scripted import Scripted
from nodes.picture import Picture

VOICE = Voice("ruri", frozenset({"ruri"}), (), (), "b2:00")
SMALL = st.text("ab<\n", max_size=6)


def ask(name: str = "m", *, stop: tuple[str, ...] = (), max_tokens: int = 100, text: str = "12345678") -> Request:
    turns = (Turn("text", (Span(text, "format"),)),)
    return Request(name, turns, VOICE, (Line("ann", "hello", "act:1"),), 0.7, max_tokens, stop, 1)


def vendor(*provides: str, concurrency: int = 4, price: float | None = None) -> Vendor:
    return Vendor("http://localhost/v1", provides, concurrency=concurrency, price_in=price, price_out=price)


def conduit(vendors: Mapping[str, Vendor], models: Mapping[str, Model], model_calls: int = 16) -> Conduit:
    return Conduit("m", vendors, Scripted(["echoed"]), model_calls, connect=lambda name, _: models[name])


async def running(model: Scripted, calls: int) -> None:
    """Wait until so many calls are under way."""
    while model.running < calls:
        model.began.clear()
        await model.began.wait()


async def hear(door: Conduit, request: Request) -> list[str | Usage]:
    async with aclosing(door.stream(request)) as pieces:
        return [piece async for piece in pieces]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a/b-1.5^c/d@2000000", ModelName("a/b-1.5", "c/d", 2000000)),
        ("a@31_000", ModelName("a", None, 31000)),
        ("a^b", ModelName("a", "b")),
        ("ft:x:org::1", ModelName("ft:x:org::1")),
        ("@cf/meta/x", ModelName("@cf/meta/x")),
        ("a@beta", ModelName("a@beta")),
        ("a@beta@8", ModelName("a@beta", None, 8)),
    ],
)
def test_model_strings(text: str, name: ModelName) -> None:
    assert ModelName.parse(text) == name


@pytest.mark.parametrize("text", ["", "^t", "a^", "a^@5", "@5", "a@0", "a@100000001", "a@" + "9" * 5000])
def test_model_strings_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(ModelRefused, match="the model"):
        ModelName.parse(text)


@pytest.mark.parametrize("name", ["gpt@0", "^x", "a\x1b[2Jb", "a\u202eb", "a b", "a\n", ""])
def test_settings_refuse_model_names_that_mean_nothing(name: str) -> None:
    somewhere = {"base_url": "http://localhost/v1", "provides": [name]}
    for models in ({"default": name}, {"vendors": {"v": somewhere}}):
        with pytest.raises(ValidationError):
            MeshConfig.model_validate({"models": models})


@given(st.text())
def test_any_text_is_a_model_string_or_refused(text: str) -> None:
    with suppress(ModelRefused):
        name = ModelName.parse(text)
        assert ModelName.parse(str(name)) == name


def joined_cut(text: str, stops: list[str]) -> str:
    """What a StopFilter must give: the text up to the first place where a stop begins."""
    places = [text.find(stop) for stop in stops if stop and stop in text]
    return text[: min(places, default=len(text))]


def safe(text: str, stops: list[str]) -> str:
    """The most that may be shown of a text that goes on: up to the first place where a stop begins or may begin."""
    for at in range(len(text)):
        if any(stop and (text[at:].startswith(stop) or stop.startswith(text[at:])) for stop in stops):
            return text[:at]
    return text


@given(st.lists(SMALL, max_size=8), st.lists(SMALL, max_size=6))
def test_stops_cut_the_same_text_however_it_is_divided(pieces: list[str], stops: list[str]) -> None:
    """Nothing behind the first stop is given, and what cannot be part of one is given at once."""
    filtered = StopFilter(tuple(stops))
    given_out, fed = "", ""
    for piece in pieces:
        given_out += filtered.feed(piece)
        fed += piece
        assert given_out == safe(fed, stops)
    given_out += filtered.finish()
    assert given_out == joined_cut(fed, stops)
    assert filtered.done == (given_out != fed)
    assert filtered.feed("more") == "" or not filtered.done


async def test_requests_go_to_the_first_vendor_that_provides_the_model() -> None:
    models = {name: Scripted([name]) for name in ("one", "two", "three")}
    door = conduit({"one": vendor("a", "b-*"), "two": vendor("b-x", "c?", "*/z"), "three": vendor("*")}, models)
    routes = {"a": "one", "b-x": "one", "c1": "two", "q/z": "two", "A": "three", "m": "three"}
    for name, expected in routes.items():
        assert (await hear(door, ask(name)))[0] == expected
    assert (await hear(door, ask("")))[0] == "three"
    assert (await hear(door, ask("a^tok@100")))[0] == "one"
    assert models["one"].requests[-1].model == "a"
    assert (await hear(door, ask(ECHO)))[0] == "echoed"


async def test_an_unknown_model_is_refused_with_the_names_that_exist() -> None:
    door = conduit({"one": vendor("gpt-*", "x\x1b")}, {})
    with pytest.raises(ModelRefused, match=r"model n\\x1b; name one of: echo, gpt-\*, x\\x1b$"):
        await hear(door, ask("n\x1b"))
    many = conduit({"one": vendor(*[f"m-{n}" for n in range(1000)])}, {})
    with pytest.raises(ModelRefused) as caught:
        await hear(many, ask("none" * 1000))
    assert len(str(caught.value)) < 500


async def test_a_stop_ends_the_call_and_one_usage_ends_the_reply() -> None:
    never = asyncio.Event()
    model = Scripted(["<ruri> he", "llo\n<a", "nn> hi", never])
    door = conduit({"v": vendor("m")}, {"v": model})
    assert await hear(door, ask(stop=("\n<ann>", "x"))) == ["<ruri> he", "llo", Usage(2, 6)]
    assert model.running == 0


async def test_held_back_text_comes_at_the_end_when_no_stop_follows() -> None:
    door = conduit({"v": vendor("m")}, {"v": Scripted(["hi\n<a", Usage(9, 8, 7)])})
    assert await hear(door, ask(stop=("\n<ann>",))) == ["hi", "\n<a", Usage(9, 8, 7)]


async def test_max_tokens_is_a_hard_bound_here_too() -> None:
    model = Scripted(["x" * 30, "y" * 30, asyncio.Event()])
    door = conduit({"v": vendor("m")}, {"v": model})
    heard = await hear(door, ask(max_tokens=5))
    assert heard[:-1] == ["x" * 30, "y" * (5 * MAX_CHARS_PER_TOKEN - 30)]
    assert isinstance(heard[-1], Usage)
    assert model.running == 0


async def test_totals_count_replies_failures_and_calls_that_were_given_up() -> None:
    scripts = [["hi", Usage(1_000_000, 500_000, 10)], [ModelUnavailable("no")], ["abcd", ModelUnavailable("no")]]
    model = Scripted(*scripts, ["abcd", asyncio.Event()])
    door = conduit({"v": vendor("m", price=2.0)}, {"v": model})
    await hear(door, ask())
    assert door.totals() == {"m": Total(1, 0, 1_000_000, 10, 500_000, 3.0)}
    assert door.cost("m", Usage(1_000_000, 500_000)) == 3.0
    for _ in range(2):
        with pytest.raises(ModelUnavailable):
            await hear(door, ask())
    assert door.totals()["m"] == Total(3, 2, 1_000_002, 10, 500_001, 3.000006)
    pieces = door.stream(ask())
    assert await anext(pieces) == "abcd"
    await pieces.aclose()
    assert door.totals()["m"] == Total(4, 2, 1_000_004, 10, 500_002, pytest.approx(3.000012))


async def test_cost_is_unknown_without_a_price_and_nothing_for_echo() -> None:
    door = conduit({"v": vendor("m")}, {"v": Scripted(["hi"])})
    await hear(door, ask())
    await hear(door, ask(ECHO))
    assert door.totals()["m"].cost is None
    assert door.totals()[ECHO].cost == 0.0


async def test_totals_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model name can come from outside, so new names cannot fill the memory."""
    monkeypatch.setattr(module, "MAX_MODELS_COUNTED", 2)
    door = conduit({"v": vendor("*")}, {"v": Scripted(["hi"])})
    for name in "abcda":
        await hear(door, ask(name))
    assert {name: total.calls for name, total in door.totals().items()} == {"a": 2, "b": 1, module.OTHER: 2}


async def test_a_stuck_vendor_delays_only_its_own_callers() -> None:
    """Even with more stuck calls than the node may run at a time, the other vendor answers."""
    release = asyncio.Event()
    stuck, well = Scripted([release, "late"]), Scripted(["hi"])
    door = conduit(
        {"stuck": vendor("s", concurrency=99), "well": vendor("w")}, {"stuck": stuck, "well": well}, model_calls=5
    )
    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(hear(door, ask("s")), name=f"stuck {n}") for n in range(20)]
        await running(stuck, 3)
        for _ in range(3):
            assert (await hear(door, ask("w")))[0] == "hi"
        assert not any(task.done() for task in waiting)
        assert stuck.running == 3
        release.set()
    assert stuck.most_running == 3
    assert {task.result()[0] for task in waiting} == {"late"}


async def test_a_vendors_own_limit_holds() -> None:
    release = asyncio.Event()
    model = Scripted([release, "hi"])
    door = conduit({"v": vendor("m", concurrency=2)}, {"v": model})
    async with asyncio.TaskGroup() as group:
        for number in range(6):
            group.create_task(hear(door, ask()), name=f"call {number}")
        await running(model, 2)
        release.set()
    assert model.most_running == 2
    assert len(model.requests) == 6


@given(st.lists(st.sampled_from(["enter a", "enter b", "leave", "cancel"]), max_size=30))
def test_the_gate_never_loses_or_invents_a_place(steps: list[str]) -> None:
    """However callers come, go and give up: limits hold, nobody waits at a free place, and all places come back."""

    async def hold(gate: Gate, door: str, leave: asyncio.Event, inside: list[str]) -> None:
        async with gate.through(door):
            inside.append(door)
            try:
                await leave.wait()
            finally:
                inside.remove(door)

    async def run() -> None:
        gate = Gate({"a": 3, "b": 1}, 3)
        inside: list[str] = []
        calls: list[tuple[asyncio.Task[None], asyncio.Event]] = []
        async with asyncio.TaskGroup() as group:
            for number, step in enumerate(steps):
                if step.startswith("enter"):
                    leave = asyncio.Event()
                    call = group.create_task(hold(gate, step[-1], leave, inside), name=step)
                    calls.append((call, leave))
                elif calls:
                    call, leave = calls.pop(number % len(calls))
                    leave.set() if step == "leave" else call.cancel()
                if number % 3:  # sometimes several things happen in one turn of the loop
                    await asyncio.sleep(0)
                assert (inside.count("a") <= 2, inside.count("b") <= 1) == (True, True)
            for _ in range(10):
                await asyncio.sleep(0)
            wanted = {door: sum(not c.done() and c.get_name()[-1] == door for c, _ in calls) for door in "ab"}
            assert inside.count("a") == min(2, wanted["a"])
            assert inside.count("b") == min(1, wanted["b"])
            for _, leave in calls:
                leave.set()
        async with asyncio.timeout(5), gate.through("a"), gate.through("a"), gate.through("b"):
            assert not inside

    asyncio.run(run())


async def test_a_caller_who_gives_up_as_a_place_comes_free_does_not_take_it_along() -> None:
    """The place goes to the next in line, whether the caller gives up just before it is given or just after."""
    gate = Gate({"a": 1}, 1)
    inside: list[str] = []

    async def visit(name: str) -> None:
        async with gate.through("a"):
            inside.append(name)

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        async with gate.through("a"):
            before, after = (group.create_task(visit(name), name=name) for name in ("before", "after"))
            group.create_task(visit("next"), name="next")
            await asyncio.sleep(0)  # all three stand in line
            before.cancel()
        after.cancel()  # the place is given to it, but it has not run yet
    assert inside == ["next"]


async def test_a_key_is_fetched_at_the_first_call_and_never_shown() -> None:
    asked: list[str] = []

    def fetch() -> SecretStr:
        asked.append("key")
        return SecretStr("sk-secret")

    lazy = Vendor("http://localhost/v1", ("m",), key=fetch)
    plain = Vendor("http://localhost/v1", ("m",), key=SecretStr("sk-secret"))
    assert not asked
    assert "sk-secret" not in repr([lazy, plain, connect("v", lazy), connect("v", plain)])
    assert asked == ["key"]


async def test_a_missing_key_refuses_the_call_until_it_is_there() -> None:
    keys: list[Exception | SecretStr] = [ConfigError(["mesh.yaml: no such key"]), SecretStr("k")]

    def make(_: str, __: Vendor) -> Model:
        key = keys.pop(0)
        if isinstance(key, Exception):
            raise key
        return Scripted(["hi"])

    door = Conduit("m", {"v": vendor("m")}, connect=make)
    with pytest.raises(ModelRefused, match=r"mesh\.yaml: no such key"):
        await hear(door, ask())
    assert (await hear(door, ask()))[0] == "hi"


async def test_a_vendor_is_connected_once_however_many_call_first() -> None:
    made: list[str] = []

    def make(name: str, _: Vendor) -> Model:
        made.append(name)
        return Scripted(["hi"])

    door = Conduit("m", {"v": vendor("m")}, connect=make)
    async with asyncio.TaskGroup() as group:
        for number in range(5):
            group.create_task(hear(door, ask()), name=f"call {number}")
    assert made == ["v"]


async def test_after_close_all_models_are_closed_and_calls_fail() -> None:
    model = Scripted(["hi"])
    door = conduit({"v": vendor("m")}, {"v": model})
    await hear(door, ask())
    await door.close()
    await door.close()
    assert model.closed
    with pytest.raises(ModelUnavailable, match="stopping"):
        await hear(door, ask())


async def test_the_embedded_model_needs_no_vendor() -> None:
    door = Conduit(ECHO, {})
    heard = await hear(door, ask(""))
    assert [type(piece) for piece in heard].count(Usage) == 1
    assert isinstance(heard[-1], Usage)
    await door.close()


async def test_scripted_models_play_their_scripts_and_repeat_the_last() -> None:
    model = Scripted(["a", Usage(1, 2)], [ModelRefused("no")])
    assert [piece async for piece in model.stream(ask())] == ["a", Usage(1, 2)]
    for _ in range(2):
        with pytest.raises(ModelRefused, match="no"):
            await anext(model.stream(ask()))
    assert len(model.requests) == 3
    assert [piece async for piece in Scripted().stream(ask())] == [Usage(2, 0)]
    await model.close()
    with pytest.raises(ModelUnavailable):
        await anext(model.stream(ask()))


def test_only_listed_models_of_a_chat_vendor_take_pictures() -> None:
    eyes = Vendor("http://localhost/v1", ("eye-*", "ear-*"), images=("eye-*",))
    assert [eyes.sees(name) for name in ("eye-1", "ear-1", "eye")] == [True, False, False]
    assert not Vendor("http://localhost/v1", ("*",), api="completions", images=("*",)).sees("eye-1")
    assert not vendor("*").sees("eye-1")


def test_a_picture_counts_in_what_is_estimated() -> None:
    picture = Picture("ab" * 32, "image/png", 9)
    shown = replace(ask(), turns=(Turn("user", (Span("12345678", "x", (picture, picture)),)),))
    assert estimate(shown, 4) == Usage(2 + 2 * PICTURE_TOKENS, 1)
