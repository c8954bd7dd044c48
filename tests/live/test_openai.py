"""The client for OpenAI-compatible vendors against a real HTTP server that misbehaves to order."""

import asyncio
import base64
import gzip
import hashlib
import itertools
import json
import logging
import sys
import traceback
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
from images import image
from openai_server import Answer, FakeOpenAI
from pydantic import SecretStr

from nodes.chatlog import Voice
from nodes.errors import ModelError, ModelRefused, ModelUnavailable
from nodes.models import body, parts
from nodes.models import openai as client
from nodes.models.answers import MAX_EVENT_BYTES, MAX_QUOTE, MAX_REPLY_BYTES
from nodes.models.base import Request, Span, Turn, Usage
from nodes.models.conduit import Conduit, Vendor
from nodes.models.openai import Api, OpenAIModel, Patience
from nodes.picture import Picture

KEY = "sk-made-up-9f86d081884c7d65"
VOICE = Voice("ruri", frozenset({"ruri"}), (), (), "b2:00")
QUICK = Patience(timeout_s=20.0, max_retries=2, backoff_s=0.001)
NO_START = Patience(timeout_s=600.0, first_token_timeout_s=0.3)
NO_GOING_ON = Patience(timeout_s=0.3, first_token_timeout_s=600.0)
SAID = ["Hello", " there", Usage(7, 3, 5)]


def ask(text: str = "good morning", **changes: object) -> Request:
    fields = {
        "model": "m-1",
        "turns": (Turn("text", (Span(text, "format"),)),),
        "voice": VOICE,
        "recent": (),
        "temperature": 0.7,
        "max_tokens": 50,
        "stop": (),
        "seed": 1,
    }
    return Request(**{**fields, **changes})  # ty: ignore


def model(server: FakeOpenAI, api: Api, patience: Patience = QUICK, key: str | None = KEY) -> OpenAIModel:
    return OpenAIModel("the vendor", server.url, SecretStr(key) if key else None, api, patience)


async def say(
    server: FakeOpenAI, api: Api, *answers: Answer, patience: Patience = QUICK, request: Request | None = None
) -> list[str | Usage]:
    """Order answers, make one call, give everything it yielded."""
    server.play(*answers)
    vendor = model(server, api, patience)
    try:
        async with aclosing(vendor.stream(request or ask())) as pieces:
            return [piece async for piece in pieces]
    finally:
        await vendor.close()


@pytest.fixture
async def server() -> AsyncIterator[FakeOpenAI]:
    """A server of its own for each test; when it is gone nothing of the client may still be running."""
    async with FakeOpenAI() as running:
        yield running
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.fixture(params=["chat", "completions"])
def api(request: pytest.FixtureRequest) -> Api:
    return request.param


async def test_a_reply_streams_piece_by_piece_and_ends_with_the_vendors_count(server: FakeOpenAI, api: Api) -> None:
    assert await say(server, api, Answer()) == SAID


async def test_pieces_arrive_while_the_vendor_is_still_speaking(server: FakeOpenAI, api: Api) -> None:
    hold = asyncio.Event()
    server.play(Answer(hold=hold, hold_at=1))
    vendor = model(server, api)
    async with aclosing(vendor.stream(ask())) as pieces:
        assert await anext(pieces) == "Hello"
        hold.set()
        assert [piece async for piece in pieces] == [" there", Usage(7, 3, 5)]
    await vendor.close()


async def test_chat_turns_keep_their_roles_and_text_becomes_a_user_turn(server: FakeOpenAI) -> None:
    turns = (
        Turn("system", (Span("be ", "x"), Span("kind", "y"))),
        Turn("text", (Span("<a> hi", "x"),)),
        Turn("user", (Span("", "x"),)),
        Turn("assistant", (Span("<ruri>", "x"),)),
    )
    await say(server, "chat", request=ask(turns=turns, stop=("a", "b", "c", "d", "e"), seed=2**40 + 5))
    body = server.requests[0].body
    assert body["messages"] == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "<a> hi"},
        {"role": "assistant", "content": "<ruri>"},
    ]
    assert body["stop"] == ["a", "b", "c", "d"]
    assert body["seed"] == 5
    assert "top_p" not in body
    assert (body["model"], body["stream"], body["max_tokens"], body["temperature"]) == ("m-1", True, 50, 0.7)


def seen(*pictures: bytes | str) -> tuple[Span, dict[str, bytes]]:
    """A span that shows these pictures (a text: one that is gone), and where to fetch them."""
    names = {one if isinstance(one, str) else hashlib.sha256(one).hexdigest(): one for one in pictures}
    shown = tuple(Picture(name, "image/gif", 9) for name in names)
    return Span("<a> look\n", "x", shown), {name: one for name, one in names.items() if isinstance(one, bytes)}


async def shown(server: FakeOpenAI, api: Api, turns: tuple[Turn, ...], fetch: parts.Fetch | None) -> object:
    """What one call sends as its prompt."""
    vendor = OpenAIModel("v", server.url, None, api, QUICK, fetch)
    async with aclosing(vendor.stream(ask(turns=turns))) as pieces:
        assert [piece async for piece in pieces]
    await vendor.close()
    return server.requests[-1].body.get("messages") or server.requests[-1].body["prompt"]


async def test_a_picture_goes_as_its_exact_bytes_behind_the_text_that_names_it(server: FakeOpenAI) -> None:
    """Its type is what the bytes say, not what the act claims; one that is gone is left out."""
    cat, dog = image("png"), image("jpeg")
    span, kept = seen(cat, "f" * 64, dog)
    turns = (Turn("system", (Span("be kind", "x"),)), Turn("user", (span, Span("<b> well?\n", "y"))))
    system, user = await shown(server, "chat", turns, kept.get)
    assert system == {"role": "system", "content": "be kind"}
    first, *pictures, last = user["content"]
    assert (first, last) == ({"type": "text", "text": "<a> look\n"}, {"type": "text", "text": "<b> well?\n"})
    urls = [part["image_url"]["url"] for part in pictures]
    assert [url.partition(",")[0] for url in urls] == ["data:image/png;base64", "data:image/jpeg;base64"]
    assert [base64.b64decode(url.partition(",")[2], validate=True) for url in urls] == [cat, dog]


async def test_text_stays_text_without_pictures_to_show(server: FakeOpenAI) -> None:
    span, kept = seen(b"<svg/>", "f" * 64)
    turns = (Turn("user", (span, Span("<b> well?\n", "y"))),)
    plain_text = [{"role": "user", "content": "<a> look\n<b> well?\n"}]
    assert await shown(server, "chat", turns, kept.get) == plain_text
    assert await shown(server, "chat", turns, None) == plain_text
    span, kept = seen(image())
    assert await shown(server, "completions", (Turn("text", (span,)),), kept.get) == "<a> look\n"


async def test_the_newest_pictures_are_sent_while_a_request_has_room(
    server: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [image(colour=colour) for colour in ("red", "green", "blue")]
    monkeypatch.setattr(parts, "MAX_PICTURE_BYTES", len(pictures[1]) + len(pictures[2]))
    spans = [seen(picture) for picture in pictures]
    kept = {name: data for _, some in spans for name, data in some.items()}
    turns = tuple(Turn("user", (span,)) for span, _ in spans)
    first, second, third = await shown(server, "chat", turns, kept.get)
    assert first["content"] == "<a> look\n"
    assert [len(message["content"]) for message in (second, third)] == [2, 2]


async def test_completions_get_all_turns_as_one_text_and_lone_surrogates_do_no_harm(server: FakeOpenAI) -> None:
    turns = (Turn("text", (Span("<a> h\udc80i\n", "x"),)), Turn("text", (Span("<ruri>", "x"),)))
    await say(server, "completions", request=ask(turns=turns))
    assert server.requests[0].path == "/v1/completions"
    assert server.requests[0].body["prompt"] == "<a> h?i\n<ruri>"


async def test_only_the_key_and_needed_headers_leave(
    server: FakeOpenAI, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys and headers that the environment holds for another vendor stay here, and so does what machine this is."""
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "somebody-elses")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Mine: somebody-elses\nAuthorization: somebody-elses")
    await say(server, api)
    vendor = model(server, api, key=None)
    assert [piece async for piece in vendor.stream(ask())]
    await vendor.close()
    first, second = ({name.lower(): value for name, value in seen.headers.items()} for seen in server.requests)
    assert first["authorization"] == f"Bearer {KEY}"
    assert "authorization" not in second
    assert "somebody-elses" not in str((first, second))
    assert not [name for name in first if name.startswith(("x-", "openai-"))]


@pytest.mark.parametrize("status", [429, 500, 503, 408])
async def test_a_busy_vendor_is_asked_again(server: FakeOpenAI, api: Api, status: int) -> None:
    busy = Answer(status=status)
    assert await say(server, api, busy, busy, Answer()) == SAID
    assert len(server.requests) == 3


async def test_retries_end(server: FakeOpenAI, api: Api) -> None:
    with pytest.raises(ModelUnavailable, match=r"the vendor.*m-1.*HTTP 500.*made-up error 500"):
        await say(server, api, *[Answer(status=500)] * 5)
    assert len(server.requests) == 3


async def test_retry_after_is_honoured_within_a_bound(
    server: FakeOpenAI, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    async def note(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(client.asyncio, "sleep", note)
    soon = Answer(status=429, headers={"Retry-After": "7"})
    assert await say(server, api, soon, Answer()) == SAID
    assert pauses == [7.0]
    with pytest.raises(ModelUnavailable, match="HTTP 429"):
        await say(server, api, Answer(status=429, headers={"Retry-After": "3600"}))
    assert pauses == [7.0]
    assert len(server.requests) == 3


async def test_a_pause_beyond_the_deadline_is_not_begun(server: FakeOpenAI, api: Api) -> None:
    with pytest.raises(ModelUnavailable, match="HTTP 429"):
        await say(
            server,
            api,
            Answer(status=429, headers={"Retry-After": "29"}),
            patience=Patience(reply_timeout_s=5, max_retries=5),
        )
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "words"),
    [(400, "invalid"), (401, "key"), (402, "paid"), (403, "account"), (404, "name"), (307, "base_url")],
)
async def test_what_only_a_person_can_mend_is_refused_at_once(
    server: FakeOpenAI, api: Api, status: int, words: str
) -> None:
    with pytest.raises(ModelRefused, match=rf"the vendor.*m-1.*{words}.*HTTP {status}"):
        await say(server, api, Answer(status=status, headers={"Location": "http://127.0.0.1:9/"}))
    assert len(server.requests) == 1


async def test_an_account_without_money_is_not_asked_again(server: FakeOpenAI, api: Api) -> None:
    body = json.dumps({"error": {"message": "pay first", "code": "insufficient_quota"}}).encode()
    with pytest.raises(ModelRefused, match="pay first"):
        await say(server, api, Answer(status=429, body=body))
    assert len(server.requests) == 1


async def test_a_vendors_words_are_cut_escaped_and_rid_of_the_key(server: FakeOpenAI, api: Api) -> None:
    hostile = "\x1b[2J\u202e\n" + KEY + " " + "A" * (MAX_QUOTE - 15) + KEY + "B" * 100_000
    body = json.dumps({"error": {"message": hostile[:3000]}}).encode()
    with pytest.raises(ModelRefused) as caught:
        await say(server, api, Answer(status=401, body=body))
    sentence = str(caught.value)
    assert sentence.isprintable()
    assert "\\x1b" in sentence
    assert "sk-made" not in sentence
    assert len(sentence) < MAX_QUOTE + 250
    with pytest.raises(ModelRefused):
        await say(server, api, Answer(status=401, body=b"B" * 50_000_000))


async def test_the_key_shows_up_nowhere(server: FakeOpenAI, api: Api, caplog: pytest.LogCaptureFixture) -> None:
    """Not in errors, their causes, tracebacks, repr, or logs of any level; nor is the prompt in the logs of info."""
    caplog.set_level(logging.DEBUG)
    texts = [repr(model(server, api)), str(vars(model(server, api)))]
    leaky = json.dumps({"error": {"message": f"bad key {KEY}"}}).encode()
    faults = [
        Answer(status=401, body=leaky),
        Answer(status=500, body=leaky),
        Answer(end="drop"),
        Answer(body=b"data: {"),
    ]
    for fault in faults:
        with pytest.raises(ModelError) as caught:
            await say(server, api, *[fault] * 3, request=ask("a private word"))
        texts += traceback.format_exception(caught.value)
        error: BaseException | None = caught.value
        while error:
            texts.append(repr(error))
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    assert KEY not in "".join(texts) + caplog.text
    assert not [r for r in caplog.records if r.levelno >= logging.INFO and "a private word" in r.getMessage()]


async def test_a_broken_stream_is_unavailable_and_not_repeated(server: FakeOpenAI, api: Api) -> None:
    """What was said cannot be unsaid, so half an answer is never begun anew."""
    for end in ("drop", "no_finish"):
        server.play(Answer(end=end))
        vendor = model(server, api)
        pieces = vendor.stream(ask())
        assert [await anext(pieces), await anext(pieces)] == ["Hello", " there"]
        with pytest.raises(ModelUnavailable):
            await anext(pieces)
        await vendor.close()
    assert len(server.requests) == 2


async def test_a_stream_that_breaks_before_its_first_word_is_tried_again(server: FakeOpenAI, api: Api) -> None:
    broken = [Answer(pieces=(), end="drop"), Answer(pieces=(), end="no_finish")]
    assert await say(server, api, *broken, Answer()) == SAID
    assert len(server.requests) == 3


async def test_an_answer_with_finish_reason_needs_no_done(server: FakeOpenAI, api: Api) -> None:
    assert await say(server, api, Answer(end="no_done")) == SAID


@pytest.mark.parametrize(
    "body",
    [
        b"data: {not json\n\n",
        b"data: [1, 2]\n\n",
        b'data: {"choices": "many"}\n\n',
        b'data: {"choices": [{"delta": 7}]}\n\n',
        b"data: \xff\xfe\n\n",
        b"data: " + b"[" * 50_000 + b"\n\n",
        b'data: {"choices": [' + b"{}," * 1000 + b"{}]}\n\n",
    ],
)
async def test_nonsense_is_unavailable(server: FakeOpenAI, api: Api, body: bytes) -> None:
    with pytest.raises(ModelUnavailable, match="JSON"):
        await say(server, api, Answer(body=body))
    assert len(server.requests) == 1


async def test_a_page_of_html_is_unavailable(server: FakeOpenAI, api: Api) -> None:
    with pytest.raises(ModelUnavailable, match="broke off"):
        await say(server, api, *[Answer(body=b"<html>log in</html>", headers={"Content-Type": "text/html"})] * 3)


async def test_an_error_inside_the_stream_is_unavailable(server: FakeOpenAI, api: Api) -> None:
    body = b'data: {"error": {"message": "overloaded\\u0007"}}\n\n'
    with pytest.raises(ModelUnavailable, match=r"overloaded\\x07"):
        await say(server, api, *[Answer(body=body)] * 3)
    assert len(server.requests) == 3


async def test_an_endless_answer_is_cut_and_the_call_closed(server: FakeOpenAI, api: Api) -> None:
    """10 MB of text: MAX_REPLY_BYTES of it are taken, whole characters only, and the server sees us hang up."""
    heard = await say(server, api, Answer(pieces=itertools.repeat("ä€ " * 1000, 1700)))
    text = "".join(piece for piece in heard if isinstance(piece, str))
    assert MAX_REPLY_BYTES - 3 < len(text.encode()) <= MAX_REPLY_BYTES
    assert isinstance(heard[-1], Usage)
    await server.gone.wait()


async def test_one_endless_event_is_unavailable(server: FakeOpenAI, api: Api) -> None:
    huge = b"data: " + b"x" * (10 * MAX_EVENT_BYTES)
    for headers in ({}, {"Content-Type": "application/json"}):
        with pytest.raises(ModelUnavailable, match="more than any reply needs"):
            await say(server, api, Answer(body=huge, headers=headers))
    lines = b"data: x\n" * MAX_EVENT_BYTES
    with pytest.raises(ModelUnavailable, match="more than any reply needs"):
        await say(server, api, Answer(body=lines))


async def test_a_stream_of_empty_words_ends(server: FakeOpenAI, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that say nothing are bounded too."""
    monkeypatch.setattr(body, "MAX_RAW_BYTES", 100_000)
    with pytest.raises(ModelUnavailable, match="more than any reply needs"):
        await say(server, api, Answer(pieces=itertools.repeat("")))
    await server.gone.wait()


async def test_a_compressed_bomb_is_not_unpacked(server: FakeOpenAI, api: Api) -> None:
    bomb = Answer(body=gzip.compress(b"data: " + b"x" * 10_000_000), headers={"Content-Encoding": "gzip"})
    with pytest.raises(ModelUnavailable, match="compressed"):
        await say(server, api, bomb)


async def test_a_vendor_that_hangs_is_given_up(server: FakeOpenAI, api: Api) -> None:
    """Before the headers, and in the middle; the server sees us hang up both times."""
    never = asyncio.Event()
    for at, patience in enumerate((NO_START, NO_GOING_ON)):
        server.gone.clear()
        with pytest.raises(ModelUnavailable, match="too long"):
            await say(server, api, Answer(hold=never, hold_at=at), patience=patience)
        await server.gone.wait()
    assert len(server.requests) == 2


async def test_a_slow_drip_is_given_up_when_the_time_for_one_reply_is_over(server: FakeOpenAI, api: Api) -> None:
    drip = Answer(pieces=itertools.repeat("drip "), delay_s=0.02)
    with pytest.raises(ModelUnavailable, match="too long"):
        await say(server, api, drip, patience=Patience(reply_timeout_s=0.5))
    await server.gone.wait()


async def test_closing_the_generator_ends_the_request(server: FakeOpenAI, api: Api) -> None:
    server.play(Answer(hold=asyncio.Event(), hold_at=1))
    vendor = model(server, api)
    pieces = vendor.stream(ask())
    assert await anext(pieces) == "Hello"
    await pieces.aclose()
    await server.gone.wait()
    await vendor.close()
    await vendor.close()


async def test_cancelling_the_caller_ends_the_request(server: FakeOpenAI, api: Api) -> None:
    server.play(Answer(hold=asyncio.Event()))
    async with asyncio.TaskGroup() as group:
        task = group.create_task(say(server, api), name="caller")
        await server.arrived.wait()
        task.cancel()
    assert task.cancelled()
    await server.gone.wait()


async def test_without_a_count_the_cost_is_estimated(server: FakeOpenAI, api: Api) -> None:
    """Four characters a token, rounded up; a count that cannot be true is as good as none."""
    lies = [None, {}, {"prompt_tokens": -5}, {"prompt_tokens": 10**12, "completion_tokens": 1}, {"prompt_tokens": "x"}]
    for usage in lies:
        heard = await say(server, api, Answer(usage=usage), request=ask("123456789"))
        assert heard == ["Hello", " there", Usage(3, 3, 0)]


async def test_no_more_tokens_are_cached_than_were_sent(server: FakeOpenAI, api: Api) -> None:
    usage = {"prompt_tokens": 4, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 9}}
    assert (await say(server, api, Answer(usage=usage)))[-1] == Usage(4, 1, 4)


async def test_disliked_parameters_are_left_out_from_then_on(server: FakeOpenAI, api: Api) -> None:
    fussy = Answer(rejects=("stream_options", "seed", "temperature", "top_p", "stop", "max_tokens"))
    vendor = model(server, api)
    server.play(*[fussy] * 8)
    for _ in range(2):
        assert [piece async for piece in vendor.stream(ask(stop=("x",), top_p=0.5))] == SAID
    await vendor.close()
    assert len(server.requests) == 8
    assert server.requests[0].body["top_p"] == 0.5
    text = "messages" if api == "chat" else "prompt"
    assert set(server.requests[-1].body) == {"model", "stream", "max_completion_tokens", text}


async def test_calls_side_by_side_learn_the_same_dislike(server: FakeOpenAI, api: Api) -> None:
    hold = asyncio.Event()
    server.play(*[Answer(rejects=("seed",), hold=hold)] * 2)
    vendor = model(server, api)

    async def call() -> list[str | Usage]:
        return [piece async for piece in vendor.stream(ask())]

    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(call(), name=f"call {number}") for number in range(2)]
        while server.running < 2:
            server.arrived.clear()
            await server.arrived.wait()
        hold.set()
    assert [task.result()[-1] for task in calls]
    await vendor.close()


async def test_an_answer_in_plain_json_is_one_piece(server: FakeOpenAI, api: Api) -> None:
    assert await say(server, api, Answer(plain=True)) == ["Hello there", Usage(7, 3, 5)]


async def test_connections_are_used_again(server: FakeOpenAI, api: Api) -> None:
    vendor = model(server, api)
    for _ in range(3):
        assert [piece async for piece in vendor.stream(ask("hi"))] == ["hi", Usage(7, 3, 5)]
    await vendor.close()
    assert len(server.connections) == 1


async def test_a_vendor_that_is_away_is_unavailable(server: FakeOpenAI, api: Api) -> None:
    async with FakeOpenAI() as other:
        pass
    vendor = OpenAIModel("away", other.url, None, api, QUICK)
    with pytest.raises(ModelUnavailable, match="could not be reached"):
        await anext(vendor.stream(ask()))
    await vendor.close()
    with pytest.raises(ModelUnavailable, match="closed"):
        await anext(vendor.stream(ask()))
    assert not server.requests


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("localhost:8000", "k"),
        ("file:///etc/passwd", "k"),
        ("http://user:pa55word@host/v1", "k"),
        ("http://[::1/v1", "k"),
        ("http://host/v1\r\nx: y", "k"),
        ("http://host/v1", "pa55word\n"),
    ],
)
async def test_settings_that_cannot_work_are_refused_and_not_shown(url: str, key: str, api: Api) -> None:
    vendor = OpenAIModel("v", url, SecretStr(key), api)
    with pytest.raises(ModelRefused, match="correct it") as caught:
        await anext(vendor.stream(ask()))
    assert "pa55word" not in str(caught.value)
    await vendor.close()


async def test_the_conduit_reaches_a_real_vendor_and_holds_its_limit(server: FakeOpenAI, api: Api) -> None:
    hold = asyncio.Event()
    server.play(*[Answer(hold=hold)] * 5)
    vendor = Vendor(
        server.url, ("m-*",), key=lambda: SecretStr(KEY), api=api, concurrency=2, price_in=1.0, price_out=2.0
    )
    conduit = Conduit("m-1", {"local": vendor})

    async def call() -> list[str | Usage]:
        async with aclosing(conduit.stream(ask(model="m-1^tok@4096", stop=("re",)))) as pieces:
            return [piece async for piece in pieces]

    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(call(), name=f"call {number}") for number in range(5)]
        while server.running < 2:
            server.arrived.clear()
            await server.arrived.wait()
        hold.set()
    assert {task.result()[:2] == ["Hello", " the"] for task in calls} == {True}
    assert server.most_running == 2
    assert conduit.totals()["m-1"].calls == 5
    assert server.requests[0].body["model"] == "m-1"
    await conduit.close()


async def test_the_driver_is_not_loaded_before_the_first_call() -> None:
    """Loading it takes seconds when the disk is cold, and a node may never need it."""
    code = "import sys, nodes.models.conduit; sys.exit(any(m in sys.modules for m in ('openai', 'httpx2', 'numpy')))"
    root = Path(client.__file__).parents[2]
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", code, cwd=root)
    assert await child.wait() == 0


async def test_the_server_runs_as_a_program() -> None:
    """It prints its URL, says the last line back, and ends cleanly."""
    script = str(Path(__file__).parent.parent / "support" / "openai_server.py")
    child = await asyncio.create_subprocess_exec(
        sys.executable, script, "--port", "0", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        assert child.stdout
        url = (await child.stdout.readline()).decode().strip()
        vendor = OpenAIModel("v", url, None, "chat", QUICK)
        assert [p async for p in vendor.stream(ask("one\ntwo three"))] == ["two ", "three", Usage(7, 3, 5)]
        await vendor.close()
    finally:
        child.terminate()
        _, complaints = await child.communicate()
    assert (child.returncode, complaints) == (0, b"")
