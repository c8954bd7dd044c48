"""Em folders: what they say is read, what they hide is refused, and one broken em never stops the others."""

import os
from pathlib import Path

import pytest

from nodes import em as em_module
from nodes.em import Em, load_em, load_ems
from nodes.em_settings import EmSettings
from nodes.errors import ConfigError
from nodes.room import TAIL

PNG = b"\x89PNG\r\n\x1a\n" + b"\x00" * 20


def folder(tmp_path: Path, name: str = "aporia", **files: str | bytes) -> Path:
    """An em folder; `__` in a file's name stands for its dot, as in `chat__txt`."""
    made = tmp_path / name
    made.mkdir()
    for file, content in {"chat__txt": f"<{name}> hello\n", **files}.items():
        (made / file.replace("__", ".")).write_bytes(content if isinstance(content, bytes) else content.encode())
    return made


def configured(tmp_path: Path, text: str) -> Em:
    return load_em(folder(tmp_path, config__yaml=text))


def refused(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        configured(tmp_path, text)
    return caught.value.problems


def test_a_folder_with_a_chat_log_alone_is_an_em(tmp_path: Path) -> None:
    em = load_em(folder(tmp_path))
    assert (em.name, em.settings, em.avatar, em.pattern, em.notes) == (
        "aporia", EmSettings(name="aporia"), None, None, ()
    )  # fmt: skip
    assert em.voice.names == {"aporia"}
    assert em.voice.chat[0].lines[0].source == "chat.txt:1"


def test_everything_in_a_folder_is_read(tmp_path: Path) -> None:
    made = folder(
        tmp_path,
        config__yaml="name: The Aporia\nnicknames: [apo]\nreply-on-regex: (?i)doubt\nbudget: {replies_per_hour: 9}\n",
        avatar__png=PNG,
    )
    (made / "aporia.chr").mkdir()
    (made / "aporia.chr" / "b.txt").write_text("%%%\ncomment: x\n%%%\nsecond\n")
    (made / "aporia.chr" / "a.txt").write_text("<APO> first\n---\nmore")
    (made / "aporia.chr" / "notes.md").write_text("not read")
    (made / "aporia.chr" / ".hidden.txt").write_text("not read")
    em = load_em(made)
    assert (em.name, em.settings.name, em.settings.budget.replies_per_hour) == ("aporia", "The Aporia", 9)
    assert em.voice.names == {"aporia", "the aporia", "apo"}
    assert [line.text for scene in em.voice.memory for line in scene.lines] == ["first", "more", "second"]
    assert all(em.voice.is_own(line) for scene in em.voice.memory for line in scene.lines)
    assert em.voice.memory[2].lines[0].source == "aporia.chr/b.txt:4"
    assert em.avatar == made / "avatar.png"
    assert em.pattern is not None
    assert em.pattern.search("no Doubt")
    assert em.notes == ()


def test_memory_may_be_one_file_and_the_digest_follows_the_text(tmp_path: Path) -> None:
    made = folder(tmp_path, aporia__chr="one\n---\ntwo\n")
    first = load_em(made)
    assert len(first.voice.memory) == 2
    assert load_em(made).voice == first.voice
    (made / "aporia.chr").write_text("one\n---\nthree\n")
    assert load_em(made).voice.digest != first.voice.digest


def test_chapter_ii_keys_keep_their_names_and_what_is_not_honoured_is_told_once(tmp_path: Path) -> None:
    em = configured(
        tmp_path,
        """\
ensembles:
 - faculty: character
   ensemble_format:
    - format: { name: irc }
      header: "###\\n"
continuation-max-tokens: 100
continuation_model: "claude-3-opus-20240229"
prompt_max_tokens: 31_000
recency_window: 500
reply_on_random: 64
message_history_format: {name: colon}
stop_sequences: ["###"]
""",
    )
    settings = em.settings
    assert (settings.max_tokens, settings.model, settings.prompt_max_tokens) == (100, "claude-3-opus-20240229", 31_000)
    assert (settings.recency_window, settings.reply_on_random, settings.stop_sequences) == (500, 64, ("###",))
    path = em.folder / "config.yaml"
    assert em.notes == (
        f"{path}:1: ensembles: is a key of Chapter II that is not used here; it is ignored",
        f"{path}:11: message_history_format: is a key of Chapter II that is not used here; it is ignored",
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("temprature: 1", "1: temprature: there is no such key; did you mean 'temperature'?"),
        ("model: a\ncontinuation_model: b", "2: continuation_model: is given twice, first in line 1"),
        ("reply_on_random: true", "1: reply_on_random: must be a whole number N, for one message in N, or false"),
        ("reply_on_random: 1.5", "1: reply_on_random: must be a whole number"),
        ("reply_on_regex: (a+)+", "1: reply_on_regex: this pattern repeats a group"),
        ("name: a<b", "1: name: cannot be a name"),
        ("nicknames: ['']", "1: nicknames[0]: must not be empty"),
        ("nicknames: [no]", "1: nicknames[0]: must be text, and YAML reads it as false; put it in quotes"),
        ("basins: [../x]", "1: basins[0]: '../x' is not a name"),
        ("delay_s: -1", "1: delay_s: must be at least 0"),
        ("delay_s: .inf", "1: delay_s: must be a finite number"),
        ("budget: {tokens_per_day: -1}", "1: budget.tokens_per_day: must be at least 0"),
        ("model: gpt@0", "1: model: the model 'gpt@0' asks for a context outside 1..100000000 tokens"),
        ("model: ^x", "1: model: the model '^x' is not written name^tokenizer@context; correct its name"),
        ('model: "a\\eb"', "1: model: must be a model's name, without spaces and characters that cannot be seen"),
        ("model: a b", "1: model: must be a model's name, without spaces"),
        ("model: a@100", "1: model: asks for a context of 100 tokens; a prompt and a reply need 256 or more"),
        ("recency_window: 10_001", "1: recency_window: must be at most 10000"),
        ("mute: maybe", "1: mute: must be true or false, not 'maybe'"),
    ],
)
def test_mistakes_in_settings_are_told(tmp_path: Path, text: str, told: str) -> None:
    (problem,) = refused(tmp_path, text)
    assert problem.startswith(f"{tmp_path / 'aporia' / 'config.yaml'}:{told}")


@pytest.mark.parametrize(
    ("text", "told", "key", "value"),
    [
        ("recency_window: 700", "700 messages are more than a node keeps; it sees 512", "recency_window", TAIL),
        ("model: m^llama", "model: the tokenizer behind ^ is not used; a token counts as 4 characters", "top_p", None),
        ("max_tokens: 8000", "max_tokens: 8,000 leave no room for a prompt; replies have 7,808 at most", "mute", False),
        ("model: m@1000\nmax_tokens: 900", "replies have 808 at most", "mute", False),
    ],
)
def test_what_cannot_be_had_is_brought_down_with_a_note(
    tmp_path: Path, text: str, told: str, key: str, value: object
) -> None:
    em = configured(tmp_path, text)
    (note,) = em.notes
    assert note.endswith(told)
    assert getattr(em.settings, key) == value


def test_false_and_zero_mean_never_by_chance(tmp_path: Path) -> None:
    assert configured(tmp_path, "reply_on_random: false").settings.reply_on_random == 0


@pytest.mark.parametrize("name", ["Aporia", "-a", "a b", "a.b", "a" * 33, "ä"])
def test_folders_that_are_no_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="is no name for an em"):
        load_em(folder(tmp_path, name))


def test_text_that_cannot_be_read_is_left_out_with_a_note(tmp_path: Path) -> None:
    em = load_em(folder(tmp_path, chat__txt=b"\x00\x01\x02", aporia__chr="kept"))
    assert em.voice.chat == ()
    assert [line.text for scene in em.voice.memory for line in scene.lines] == ["kept"]
    assert em.notes == (
        f"{em.folder / 'chat.txt'}:1: holds NUL bytes, so it is not text; put a UTF-8 text file in its place",
    )


def test_ambiguous_text_is_noted_with_its_place(tmp_path: Path) -> None:
    em = load_em(folder(tmp_path, chat__txt="<aporia> x\n<oops\n"))
    assert em.notes == (f"{em.folder}/chat.txt:2: begins with < but with no name in <>; it is read as text",)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"config__yml": "mute: true"}, "config.yml:1: is not read; rename it to config.yaml"),
        ({"other__chr": "x"}, "other.chr:1: is not read; rename it to aporia.chr"),
        ({"discord_token": "secret"}, "discord_token:1: is a setting in a file of its own"),
        ({"chat__txt": "<mara> hi\n<mara> so\n<tobi> yo"}, "chat.txt:1: has no line by aporia, only by mara (2), tobi"),
        ({"avatar__png": b"GIF89a"}, "avatar.png:1: is not a PNG picture"),
        ({"chat__txt": ""}, "chat.txt:1: holds no messages"),
    ],
)  # fmt: skip
def test_what_was_probably_meant_otherwise_is_noted(tmp_path: Path, files: dict[str, str | bytes], told: str) -> None:
    em = load_em(folder(tmp_path, **files))
    assert em.notes[0].startswith(f"{em.folder}/{told}")
    assert "secret" not in str(em.notes)


def test_links_out_of_the_folder_pipes_and_folders_in_place_of_files_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "private.txt").write_text("<aporia> private")
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "diary.txt").write_text("private")
    (tmp_path / "private.png").write_bytes(PNG)
    made = folder(tmp_path)
    (made / "chat.txt").unlink()
    (made / "chat.txt").symlink_to("../private.txt")
    (made / "aporia.chr").symlink_to("../private")
    (made / "avatar.png").symlink_to("../private.png")
    em = load_em(made)
    assert (em.voice.chat, em.voice.memory, em.avatar) == ((), (), None)
    assert sum("leads outside its folder" in note for note in em.notes) == 3

    piped = folder(tmp_path, "ruri")
    (piped / "chat.txt").unlink()
    os.mkfifo(piped / "chat.txt")
    (piped / "ruri.chr").mkdir()
    (piped / "ruri.chr" / "a.txt").mkdir()
    (piped / "ruri.chr" / "b.txt").symlink_to("/dev/zero")
    (piped / "ruri.chr" / "c.txt").write_text("kept")
    em = load_em(piped)
    assert [line.text for scene in em.voice.memory for line in scene.lines] == ["kept"]
    assert len(em.notes) == 3


def test_a_link_within_the_folder_is_followed(tmp_path: Path) -> None:
    made = folder(tmp_path)
    (made / "aporia.chr").symlink_to("chat.txt")
    assert len(load_em(made).voice.memory) == 1


def test_an_em_has_a_limited_amount_of_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(em_module, "MAX_TEXT_BYTES", 40)
    monkeypatch.setattr(em_module, "MAX_MEMORY_FILES", 2)
    made = folder(tmp_path)
    (made / "aporia.chr").mkdir()
    for name, size in [("a", 30), ("b", 20), ("c", 1)]:
        (made / "aporia.chr" / f"{name}.txt").write_text("x" * size)
    em = load_em(made)
    assert [line.text for scene in em.voice.memory for line in scene.lines] == ["x" * 20]
    assert sum("is larger than" in note for note in em.notes) == 1
    assert any("the last 1 are not read" in note for note in em.notes)


def test_one_broken_em_never_stops_the_others(tmp_path: Path) -> None:
    root = tmp_path / "ems"
    root.mkdir()
    folder(root, "ruri")
    folder(root, "aporia")
    folder(root, "broken", config__yaml="mute: [")
    folder(root, "Not A Name")
    folder(root, ".git")
    folder(tmp_path, "elsewhere")
    (root / "stray").symlink_to("../elsewhere")
    (root / "loop").symlink_to("loop")
    (root / "README.md").write_text("not an em")
    ems, problems = load_ems(root)
    assert [em.name for em in ems] == ["aporia", "ruri"]
    told = "\n".join(problems)
    assert "Not A Name:1: is no name for an em" in told
    assert "broken/config.yaml:1: is not valid YAML" in told or "broken/config.yaml:2: is not valid YAML" in told
    assert "stray:1: is a link that leads elsewhere" in told
    assert "loop:1: " in told
    assert len(problems) == 4


def test_a_missing_folder_of_ems_is_told(tmp_path: Path) -> None:
    ems, (problem,) = load_ems(tmp_path / "gone")
    assert ems == []
    assert "cannot be read as a folder" in problem


def test_every_setting_is_described() -> None:
    assert [name for name, field in EmSettings.model_fields.items() if not field.description] == []
