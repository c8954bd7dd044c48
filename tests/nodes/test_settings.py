"""Settings files: strict, all mistakes at once, each with its place; and nothing in a file can hurt."""

import os
from pathlib import Path
from typing import Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import AliasChoices, Field, SecretStr

from nodes import settings
from nodes.errors import ConfigError
from nodes.settings import MAX_DEPTH, MAX_FILE_BYTES, Name, Settings, load


class Lamp(Settings):
    colour: Literal["amber", "blue"] = "amber"
    watts: int = Field(default=5, ge=1, le=100)
    hot: bool = False


class House(Settings):
    tolerated = {"chimney_sweep": "is not used here"}  # noqa: RUF012 - as settings declare it

    owner: str = Field(default="nobody", validation_alias=AliasChoices("owner", "landlord"))
    warmth: float = 20.0
    door_key: SecretStr | None = None
    rooms: tuple[str, ...] = Field(default=(), strict=False)
    hall: Lamp = Field(default_factory=Lamp)
    lamps: dict[Name, Lamp] = Field(default_factory=dict)


def house(tmp_path: Path, text: str | bytes) -> House:
    path = tmp_path / "house.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load(path, House)


def problems(tmp_path: Path, text: str | bytes) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        house(tmp_path, text)
    place = f"{tmp_path / 'house.yaml'}:"
    assert all(problem.startswith(place) and problem.isprintable() for problem in caught.value.problems)
    return [problem.removeprefix(place) for problem in caught.value.problems]


@pytest.mark.parametrize("text", ["", "\n# nothing\n", "---\n", "hall:\nlamps:\n", b"\xef\xbb\xbf", "{}"])
def test_a_file_that_sets_nothing_gives_the_defaults(tmp_path: Path, text: str | bytes) -> None:
    assert house(tmp_path, text) == House()


def test_values_are_read_by_yaml_1_1(tmp_path: Path) -> None:
    text = "owner: mara\r\nwarmth: 1_000\r\nrooms: [a, 2024-01-02]\r\nlamps:\r\n  my-lamp: {watts: 0x10, hot: on}\r\n"
    read = house(tmp_path, text)
    assert read.warmth == 1000
    assert read.rooms == ("a", "2024-01-02")
    assert read.lamps == {"my-lamp": Lamp(watts=16, hot=True)}


def test_all_mistakes_are_told_at_once_each_with_its_line_and_what_was_meant(tmp_path: Path) -> None:
    text = """\
ownr: mara
warmth: warm
hall:
  colour: ambr
  watts: 500
lamps:
  porch:
    hott: true
    watts: [1]
rooms: kitchen
"""
    assert problems(tmp_path, text) == [
        "1: ownr: there is no such key; did you mean 'owner'?",
        "2: warmth: must be a number, not 'warm'",
        "4: hall.colour: must be one of amber, blue; did you mean 'amber'?",
        "5: hall.watts: must be at most 100",
        "8: lamps.porch.hott: there is no such key; did you mean 'hot'?",
        "9: lamps.porch.watts: must be a whole number, not a list",
        "10: rooms: must be a list, such as [a, b], not 'kitchen'",
    ]


def test_yaml_words_that_are_not_text_are_explained(tmp_path: Path) -> None:
    assert problems(tmp_path, "owner: no\nrooms: [1]\nwarmth:\nlamps: {on: {}, 'Big Lamp': {}}\n") == [
        "1: owner: must be text, and YAML reads it as false; put it in quotes",
        "2: rooms[0]: must be text, and YAML reads it as 1; put it in quotes",
        "3: warmth: has no value; it must be a number, or remove the line to have the default",
        "4: lamps.on: YAML does not read the key 'on' as text; put it in quotes",
        "4: lamps.Big Lamp: 'Big Lamp' is not a name: use 1 to 64 of a-z, 0-9, _ and -, beginning with a-z or 0-9",
    ]


def test_kebab_case_and_old_names_are_the_same_key(tmp_path: Path) -> None:
    assert house(tmp_path, "landlord: mara\ndoor-key: abc\n") == House(owner="mara", door_key=SecretStr("abc"))


@pytest.mark.parametrize("text", ["owner: a\nowner: b", "owner: a\nlandlord: b", "door-key: a\ndoor_key: b"])
def test_the_same_key_twice_is_a_mistake(tmp_path: Path, text: str) -> None:
    (problem,) = problems(tmp_path, text)
    assert problem.startswith("2: ")
    assert "is given twice, first in line 1" in problem


def test_a_tolerated_key_is_a_note_and_not_an_error(tmp_path: Path) -> None:
    path = tmp_path / "house.yaml"
    path.write_text("chimney-sweep: tobi\n")
    notes: list[str] = []
    assert load(path, House, notes=notes) == House()
    assert notes == [f"{path}:1: chimney-sweep: is not used here"]


def test_secrets_are_masked_and_never_told(tmp_path: Path) -> None:
    assert "hunter2" not in repr(house(tmp_path, "door_key: hunter2"))
    (problem,) = problems(tmp_path, "door_key: [hunter2]\n")
    assert "hunter2" not in problem


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("- a\n- b\n", "1: the file must hold `key: value` lines"),
        ("owner: a\n---\nowner: b\n", "2: begins a second document"),
        ("owner: a\n  warmth: 3\n", "2: is not valid YAML"),
        ("owner:\n\t- a\n", "2: is not valid YAML"),
        ("owner: *nobody\n", "1: is not valid YAML"),
        ("owner: !!python/object:os.system x\n", "has no meaning here"),
        ("warmth: !!int abc\n", "1: warmth: 'abc' is not the value that its tag promises"),
        ("warmth: " + "9" * 5_000, "1: warmth: this number is too long"),
        ("warmth: .nan\n", "1: warmth: must be a finite number"),
        ("hall: &h {watts: 1}\nlamps: {a: {<<: *h}}\n", "2: lamps.a.<<: merge keys are not read here"),
        ("? [a]\n: b\n", "a key must be one word"),
        (b"owner: \xff\n", "1: is not UTF-8"),
        (b"owner: a\nrooms: [\x1b]\n", "2: holds a control character"),
        ("owner: a".encode("utf-16"), "1: is UTF-16; save it as UTF-8"),
        (b"\x7fELF\x00\x00", "1: holds NUL bytes"),
        (b"#" * (MAX_FILE_BYTES + 1), "1: is larger than 1 MiB"),
        ("\u202e\u2066key: 1\n", "1: ??key: there is no such key"),
    ],
)
def test_what_is_no_settings_file_is_refused_in_one_sentence(tmp_path: Path, text: str | bytes, told: str) -> None:
    (problem,) = problems(tmp_path, text)
    assert told in problem


def test_bombs_are_refused(tmp_path: Path) -> None:
    """Nesting, aliases of aliases, and a value that holds itself all end in a sentence."""
    layers = "\n".join(f"{name}: &{name} [{', '.join([f'*{below}'] * 20)}]" for below, name in zip("abcd", "bcde"))  # noqa: B905 - as long as both last
    bomb = f"a: &a [x, y]\n{layers}\nrooms: *e\n"
    deep = "rooms: " + "[" * 100_000
    itself = "rooms: &a [*a, *a]\n"
    for text in (bomb, deep, itself):
        assert any(f"more than {MAX_DEPTH} levels" in problem for problem in problems(tmp_path, text))


def test_the_mistakes_of_quite_another_file_do_not_flood(tmp_path: Path) -> None:
    told = problems(tmp_path, "".join(f"key{count}: 1\n" for count in range(1_000)))
    assert len(told) == 101
    assert told[-1] == "1: has 900 more mistakes; is it the right file?"


def test_aliases_may_be_used(tmp_path: Path) -> None:
    read = house(tmp_path, "hall: &lamp {watts: 7}\nlamps: {porch: *lamp}\n")
    assert read.lamps["porch"].watts == read.hall.watts == 7


def test_a_missing_file_a_folder_and_a_pipe_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name, told in [("gone", "cannot be read"), (".", "is a folder"), ("pipe", "is a pipe"), ("loop", "cannot be")]:
        with pytest.raises(ConfigError, match=told):
            load(tmp_path / name, House)


def test_a_link_out_of_the_folder_is_refused_and_one_within_is_followed(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "secret.yaml").write_text("owner: outside")
    (inside / "real.yaml").write_text("owner: inside")
    (inside / "out.yaml").symlink_to("../secret.yaml")
    (inside / "in.yaml").symlink_to("real.yaml")
    assert load(inside / "in.yaml", House, within=inside).owner == "inside"
    with pytest.raises(ConfigError, match="leads outside its folder"):
        load(inside / "out.yaml", House, within=inside)


def test_it_reads_the_same_without_the_c_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "owner: mara\nlamps:\n  a-b: {watts: 1_0}\n"
    with_c = house(tmp_path, text)
    monkeypatch.setattr(settings, "_LOADER", yaml.SafeLoader)
    assert house(tmp_path, text) == with_c
    assert problems(tmp_path, "hall:\n  wats: 1\n") == ["2: hall.wats: there is no such key; did you mean 'watts'?"]


_FRAGMENTS = st.sampled_from(
    [*"\n\t :-[]{}&*!|>'\"%@#?,~", "\n", "\n  ", "owner", "hall", "lamps", "watts: ", ": ", "- ", "&a ", "*a", "<<: ",
     "!!binary ", "!!set ", "---\n", "1e9", "1:30", "0b1", "2024-13-99", "\ufeff", "\x85", "\u2028", "=", "..."]
)  # fmt: skip


@hypothesis_settings(deadline=None)
@given(st.one_of(st.binary(max_size=60), st.lists(_FRAGMENTS, max_size=25).map(lambda parts: "".join(parts).encode())))
def test_reading_is_total(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """Any bytes give settings or a ConfigError whose every line names a place."""
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(data)
    told: list[str] = []
    read: House | None = None
    try:
        read = load(path, House)
    except ConfigError as error:
        told = error.problems
    assert (read is None) == bool(told)
    assert all(problem.startswith(f"{path}:") for problem in told)
