"""Contents of Matrix events: built within the limits, read whatever they hold."""

import json
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.bridges.matrix.content import (
    LINKS,
    MARK,
    MAX_BODY,
    MAX_CONTENT,
    Mark,
    Relation,
    clean,
    edit,
    fit,
    later,
    message,
    prefixed,
    reaction,
    redaction,
    render,
    resolve,
    size,
)
from mesh.bridges.matrix.payload import encode
from mesh.bridges.matrix.reading import Heard, read, read_mark, to_text

TAGS = {
    *("p", "br", "hr", "em", "strong", "s", "code", "pre", "a", "ul", "ol", "li", "blockquote"),
    *("h1", "h2", "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td"),
}
ATTRIBUTES = {("a", "href"), ("a", "title"), ("code", "class"), ("ol", "start"), ("td", "style"), ("th", "style")}
KEYS = st.sampled_from(
    [
        *(
            "msgtype",
            "body",
            "format",
            "formatted_body",
            "m.relates_to",
            "rel_type",
            "event_id",
            "key",
            "m.in_reply_to",
        ),
        *("m.new_content", "m.mentions", "user_ids", "room", "url", "info", "mimetype", "size", "filename", "v", "act"),
        *("root", "hops", "node", MARK, "is_falling_back"),
    ]
)
WORDS = st.sampled_from(
    [
        "m.text",
        "m.image",
        "m.replace",
        "m.thread",
        "m.annotation",
        "org.matrix.custom.html",
        "$e",
        "mxc://a/b",
        "> <@a>",
    ]
)
any_text = st.text(st.characters(), max_size=30) | WORDS | st.just("ab" * 16)
any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=8),
    max_leaves=30,
)
marks = st.builds(
    Mark, st.binary(min_size=16, max_size=16), st.binary(min_size=16, max_size=16), st.integers(0, 1000), st.just("amp")
)
PIECES = [*"ab*_`[]()<>#-|~\\\n !&;:/\"'=\x00", "http://x", "javascript:", "```", "<b>"]
MARKDOWN = st.lists(st.sampled_from(PIECES), max_size=40).map("".join)


class Tags(HTMLParser):
    """Collects what tags and attributes there are."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found = list[tuple[str, list[tuple[str, str | None]]]]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, attrs))


@given(MARKDOWN)
def test_rendered_text_holds_harmless_tags_only(text: str) -> None:
    for tag, attributes in Tags(render(text)).found:
        assert tag in TAGS
        for name, value in attributes:
            assert (tag, name) in ATTRIBUTES
            assert name != "href" or (value or "").split(":")[0].lower() in LINKS


@pytest.mark.parametrize(
    ("text", "rich"),
    [
        ("plain", ""),
        ("a *b*", "<p>a <em>b</em></p>"),
        ("<script>alert(1)</script> **x**", "<p>&lt;script&gt;alert(1)&lt;/script&gt; <strong>x</strong></p>"),
        ("[x](javascript:alert(1)) `y`", "<p>[x](javascript:alert(1)) <code>y</code></p>"),
        ("![i](https://a/b.png)", '<p>!<a href="https://a/b.png">i</a></p>'),
        ("one\ntwo", "<p>one<br />\ntwo</p>"),
    ],
)
def test_markdown_becomes_html(text: str, rich: str) -> None:
    assert render(text) == rich


@given(any_text, marks)
def test_what_is_built_is_read_back(text: str, mark: Mark) -> None:
    """A message with everything on it says the same after the journey."""
    relation = Relation(reply_to="$last", thread="$root")
    content = json.loads(encode(message(text, relation=relation, mentions=["@mara:x"], mark=mark)))
    told = read("m.room.message", content)
    assert told
    assert (told.reply_to, told.thread, told.mentions, told.mark) == ("$last", "$root", ("@mara:x",), mark)
    assert content["body"] == clean(text)
    replaced = read("m.room.message", edit("$old", message(text, mark=mark)))
    assert replaced
    assert (replaced.edits, replaced.mark, replaced.notice) == ("$old", mark, False)


@given(any_json)
def test_reading_is_total(value: Any) -> None:
    """Any JSON as content gives a value with texts within bounds, or None."""
    content = (
        value if isinstance(value, dict) else {"msgtype": "m.text", "body": "b", "m.relates_to": value, MARK: value}
    )
    for kind in ("m.room.message", "m.reaction", "m.room.member"):
        told = read(kind, content)
        assert told is None or told.text.encode() is not None
    read_mark(value)


@given(any_text)
def test_any_html_is_read(rich: str) -> None:
    assert isinstance(to_text(rich), str)


@pytest.mark.parametrize(
    "piece", ["<", "<a", "<mx-reply>", "<!--", "&", "&#", "<pre>", "</", "<a <a", "<script", "<b>İ"]
)
def test_long_hostile_html_is_read_in_no_time(piece: str) -> None:
    """The test's own timeout is what fails here, should reading not be linear."""
    assert len(to_text(piece * (65_536 // len(piece)))) <= 4 * 65_536


@pytest.mark.parametrize(
    ("rich", "text"),
    [
        ("<p>a <em>b</em></p>", "a *b*"),
        ("<mx-reply><blockquote>old</blockquote></mx-reply>new", "new"),
        ('<a href="https://matrix.to/#/@ada:x">Ada</a>: 1 &lt; 2', "Ada: 1 < 2"),
        ("<ul><li>a</li><li>b</li></ul>", "- a\n- b"),
        ("a<script>evil()</script>b<!-- c -->", "ab"),
        ("<mx-reply>never closed", ""),
    ],
)
def test_html_becomes_text(rich: str, text: str) -> None:
    assert to_text(rich) == text


def test_the_quotation_of_a_reply_is_left_out() -> None:
    related = {"m.in_reply_to": {"event_id": "$e"}}
    content = {"msgtype": "m.text", "body": "> <@ada:x> old\n> lines\n\nnew\n> kept", "m.relates_to": related}
    assert read("m.room.message", content) == Heard("new\n> kept", reply_to="$e")


@pytest.mark.parametrize("text", ["x" * 70_000, "ж" * 60_000, '"\n' * 40_000, "😀" * 30_000, "*a* " * 20_000])
@pytest.mark.parametrize("extra", [{}, {"mentions": [f"@{n:0200}:x" for n in range(20)], "notice": True}])
def test_what_is_too_long_is_cut_and_says_so(text: str, extra: dict[str, Any]) -> None:
    content = message(text, **extra)
    assert size(content) <= MAX_CONTENT
    assert content["body"].endswith("too long for one message]")
    replacement = edit("$e", content)
    assert size(replacement) <= MAX_CONTENT
    assert size(prefixed(content, "ada", "Ada")) <= MAX_CONTENT + 1_000
    assert size(prefixed(replacement, "ada", "Ada")) <= MAX_CONTENT + 1_000


def test_sixty_thousand_characters_pass() -> None:
    assert message("x" * MAX_BODY)["body"] == "x" * MAX_BODY


@given(st.text(max_size=300), st.integers(60, 400))
def test_a_cut_fits_and_is_a_beginning(text: str, room: int) -> None:
    cut = fit(text, room)
    assert len(json.dumps(cut, ensure_ascii=False).encode("utf-8", "surrogatepass")) <= room
    assert cut == text or text.startswith(cut.split("\n[… cut")[0])


@pytest.mark.parametrize(
    ("content", "known", "unknown"),
    [
        (message("m"), message("m"), message("m")),
        (message("m", relation=Relation("later:a/k/1")), message("m", relation=Relation("$1")), message("m")),
        (
            message("m", relation=Relation("later:a/k/1", "$t")),
            message("m", relation=Relation("$1", "$t")),
            message("m") | {"m.relates_to": {"rel_type": "m.thread", "event_id": "$t", "is_falling_back": False}},
        ),
        (edit(later("a", "k/1"), message("m")), edit("$1", message("m")), None),
        (reaction(later("a", "k/1"), "x"), reaction("$1", "x"), None),
        (redaction(later("a", "k/1")), redaction("$1"), None),
    ],
)
def test_what_is_referred_to_is_looked_up(content: Any, known: Any, unknown: Any) -> None:
    assert resolve(content, lambda *which: {("a", "k/1"): "$1"}.get(which)) == known
    assert resolve(content, lambda *_: None) == unknown


def test_mentions_are_always_told() -> None:
    assert message("@room Ada")["m.mentions"] == {}
    assert message("Ada", mentions=["@ada:x"])["m.mentions"] == {"user_ids": ["@ada:x"]}


def test_a_shared_account_says_who_speaks() -> None:
    dressed = prefixed(message("a *b*"), "ada", "Ada <i>")
    assert dressed["body"] == "Ada <i>: a *b*"
    assert dressed["formatted_body"].startswith("<p><strong data-mx-profile-fallback>Ada &lt;i&gt;: </strong>a <em>")
    assert dressed["com.beeper.per_message_profile"] == {"id": "ada", "displayname": "Ada <i>", "has_fallback": True}


def test_a_reaction_is_read() -> None:
    assert read("m.reaction", reaction("$e", "👍")) == Heard("👍", reacts_to="$e")


GOOD = Mark(b"a" * 16, b"r" * 16, 3, "amp").value()


@pytest.mark.parametrize(
    "change",
    [{"v": 2}, {"v": True}, {"act": "xy"}, {"root": 7}, {"hops": -1}, {"hops": 10**9}, {"node": "\x1b"}, {"node": 1}],
)
def test_a_mark_is_whole_or_none(change: dict[str, Any]) -> None:
    assert read_mark(GOOD) == Mark(b"a" * 16, b"r" * 16, 3, "amp")
    assert read_mark(GOOD | change) is None
