"""YAML files of a person into pydantic values: strict, and all mistakes at once.

YAML 1.1 as PyYAML reads it (`31_000` is a number), except that dates stay text and merge keys (`<<`) are refused.
Only this module imports yaml.
"""

import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, TypeVar, Union, cast, get_args, get_origin

import yaml
from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from nodes.complaints import Loc, Place, Problem, plain_key, problems_of, sentence, shown, snake, suggest, value_shown
from nodes.errors import ConfigError
from nodes.textfile import not_text, read_bytes
from protocol.address import check_name
from protocol.errors import BadAddress

MAX_FILE_BYTES: Final = 1 << 20  # settings are written by hand; more is a mistake or an attack
MAX_DEPTH: Final = 20  # lists and mappings within each other; ours go five deep
MAX_NODES: Final = 20_000  # values in a file, each alias counted as often as it is used: an alias bomb stops here
MAX_PROBLEMS: Final = 100  # told for a file; nobody reads more, and each wants a suggestion searched
MAX_SCALAR_CHARS: Final = 200  # of numbers: converting a very long number takes very long

_YAML: Final[Any] = yaml  # its stubs leave the types open
_LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # C where it is built: ten times faster
_TAG: Final = "tag:yaml.org,2002:"
_TEXT_TAGS: Final = frozenset({_TAG + "str", _TAG + "timestamp", _TAG + "value"})  # dates in settings are meant as text
_NUMBER_TAGS: Final = frozenset({_TAG + "int", _TAG + "float", _TAG + "bool"})
_NULL: Final = _TAG + "null"
_CONTROL: Final = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Settings(BaseModel):
    """Base of all settings: unknown keys are errors, values are not bent into type, and nothing changes afterwards.

    `tolerated` has keys that other programs know and we do not use, each with its reason: a note, not an error.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        loc_by_alias=False,
        validate_by_name=True,
        validate_by_alias=True,
    )
    tolerated: ClassVar[Mapping[str, str]] = {}


def _name(value: str) -> str:
    try:
        return check_name(value)
    except BadAddress as error:
        raise ValueError(str(error)) from error


Name = Annotated[str, AfterValidator(_name)]
"""A name that may stand in an address or a subject; see `protocol.address.check_name`."""

S = TypeVar("S", bound=Settings)


def load(path: Path, model: type[S], *, within: Path | None = None, notes: list[str] | None = None) -> S:
    """Read a settings file; an empty one gives all defaults.

    A file that leads outside the folder `within` is refused. Tolerated keys are told in `notes`, where given.
    Raises ConfigError with all problems, each `FILE:LINE: key.path: what is wrong`.
    """
    problems: list[Problem] = []
    root = _compose(path, _decode(path, read_bytes(path, MAX_FILE_BYTES, within)))
    builder = _Builder(problems)
    data: object = builder.build(root, model) if root is not None else dict[str, object]()
    loaded: S | None = None
    try:
        loaded = model.model_validate(data)
    except ValidationError as error:
        problems.extend(problems_of(error, builder.places))
    if loaded is None or problems:
        ordered = list(dict.fromkeys(sorted(problems, key=lambda problem: problem.line)))
        told = [sentence(path, *problem) for problem in ordered[:MAX_PROBLEMS]]
        if len(ordered) > MAX_PROBLEMS:
            told.append(sentence(path, 1, f"has {len(ordered) - MAX_PROBLEMS:,} more mistakes; is it the right file?"))
        raise ConfigError(told)
    if notes is not None:
        notes.extend(sentence(path, *note) for note in builder.notes)
    return loaded


def _decode(path: Path, data: bytes) -> str:
    if (reason := not_text(data)) is not None:
        raise ConfigError([sentence(path, 1, reason)])
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError([sentence(path, line, "is not UTF-8; save the file as UTF-8")]) from error
    if found := _CONTROL.search(text):
        line = text.count("\n", 0, found.start()) + 1
        raise ConfigError([sentence(path, line, f"holds a control character ({found.group()!a}); remove it")])
    return text


def _compose(path: Path, text: str) -> yaml.Node | None:
    """Parse into nodes, which know their lines. Depth and size are checked on the flat stream of events first."""
    try:
        documents = 0
        depth = 0
        for count, event in enumerate(cast("Iterator[yaml.Event]", _YAML.parse(text, Loader=_LOADER))):
            documents += isinstance(event, yaml.DocumentStartEvent)
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH or count > 2 * MAX_NODES or documents > 1:
                line = cast("int", cast("Any", event).start_mark.line) + 1
                reason = "begins a second document at ---; keep one" if documents > 1 else _TOO_MUCH
                raise ConfigError([sentence(path, line, reason)])
        return cast("yaml.Node | None", _YAML.compose(text, Loader=_LOADER))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = f"is not valid YAML: {error.problem or error.context}; check indentation, quotes and colons"
        raise ConfigError([sentence(path, mark.line + 1 if mark else 1, reason)]) from error
    except yaml.YAMLError as error:
        raise ConfigError([sentence(path, 1, f"is not valid YAML: {error}")]) from error


_TOO_MUCH: Final = f"holds more than {MAX_DEPTH} levels or {MAX_NODES:,} values; settings are smaller than that"
_BAD: Final = object()  # stands for a value whose problem is already told


class _Builder:
    """Turns nodes into plain values by the shape of the model, and remembers where each one stood."""

    def __init__(self, problems: list[Problem]) -> None:
        self.places: dict[Loc, Place] = {}
        self.notes: list[Problem] = []
        self._problems = problems
        self._left = MAX_NODES
        self._stopped = False

    def build(self, root: yaml.Node, model: type[Settings]) -> object:
        """The whole file's value: always a mapping, empty if the file is not one."""
        self.places[()] = Place(1, "")
        if not isinstance(root, yaml.MappingNode) and _tag(root) != _NULL:
            self._tell(root, "", "the file must hold `key: value` lines")
            return {}
        value = self._value(root, model, ())
        return {} if value is _BAD else value

    def _tell(self, node: yaml.Node, written: str, reason: str) -> object:
        line = node.start_mark.line + 1
        self._problems.append(Problem(line, f"{written}: {reason}" if written else reason))
        return _BAD

    def _value(self, node: yaml.Node, wanted: object, loc: Loc) -> object:
        written = self.places[loc].written
        self._left -= 1
        if self._left < 0 or len(loc) > MAX_DEPTH:
            if not self._stopped:  # said once: whatever follows is cut off for the same reason
                self._tell(node, written, _TOO_MUCH)
            self._stopped = True
            return _BAD
        shapes = tuple(_shapes(wanted))
        if isinstance(node, yaml.MappingNode):
            model = next((shape for shape in shapes if _is_model(shape)), None)
            if model is not None:
                return self._fields(node, cast("type[Settings]", model), loc)
            return self._entries(node, _item(shapes, (dict, Mapping)), loc)
        if isinstance(node, yaml.SequenceNode):
            item = _item(shapes, (tuple, list, Sequence))
            places = ((*loc, index) for index in range(len(node.value)))
            return self._gather(zip(places, node.value, strict=True), item, written)
        return self._scalar(node, shapes, written)

    def _gather(self, items: Iterator[tuple[Loc, yaml.Node]], item: object, written: str) -> list[object]:
        values: list[object] = []
        for loc, node in items:
            if self._stopped:
                break
            self.places[loc] = Place(node.start_mark.line + 1, f"{written}[{loc[-1]}]")
            values.append(self._value(node, item, loc))
        return [value for value in values if value is not _BAD]

    def _scalar(self, node: yaml.Node, shapes: tuple[object, ...], written: str) -> object:
        tag, text = _tag(node), str(node.value)
        if tag == _NULL:
            # `server:` with nothing below it is an empty section, unless null has a meaning of its own here.
            section = any(_is_model(shape) or get_origin(shape) is dict for shape in shapes)
            return {} if section and type(None) not in shapes else None
        if tag in _TEXT_TAGS:
            return text
        if tag not in _NUMBER_TAGS:
            return self._tell(node, written, f"the tag {shown(tag.removeprefix(_TAG))} has no meaning here; remove it")
        if len(text) > MAX_SCALAR_CHARS:
            return self._tell(node, written, "this number is too long; text needs quotes")
        try:
            return cast("object", _YAML.constructor.SafeConstructor().construct_object(node))
        except (ValueError, ArithmeticError, KeyError, yaml.YAMLError):
            return self._tell(node, written, f"{value_shown(written, text)} is not the value that its tag promises")

    def _keys(self, node: yaml.MappingNode, loc: Loc, known: Callable[[str], str]) -> Iterator[tuple[str, yaml.Node]]:
        """The keys of a mapping as `known` spells them, each once; the others are told."""
        seen: dict[str, int] = {}
        base = self.places[loc].written
        pairs = cast("list[tuple[yaml.Node, yaml.Node]]", node.value)
        for key_node, value_node in pairs:
            if self._stopped:
                return
            raw = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else ""
            written = f"{base}.{plain_key(raw)}" if base else plain_key(raw)
            if _tag(key_node) not in _TEXT_TAGS:
                self._tell(key_node, written, _key_reason(key_node))
                continue
            key = known(raw)
            if key in seen:
                self._tell(key_node, written, f"is given twice, first in line {seen[key]}; keep one of them")
                continue
            seen[key] = key_node.start_mark.line + 1
            self.places[(*loc, key)] = Place(seen[key], written)
            yield key, value_node

    def _entries(self, node: yaml.MappingNode, item: object, loc: Loc) -> dict[str, object]:
        found: dict[str, object] = {}
        for key, value_node in self._keys(node, loc, str):
            value = self._value(value_node, item, (*loc, key))
            if value is not _BAD:
                found[key] = value
        return found

    def _fields(self, node: yaml.MappingNode, model: type[Settings], loc: Loc) -> dict[str, object]:
        names = _field_names(model)
        found: dict[str, object] = {}
        for key, value_node in self._keys(node, loc, lambda raw: names.get(snake(raw), snake(raw))):
            place = self.places[(*loc, key)]
            field = model.model_fields.get(key)
            if field is not None:
                value = self._value(value_node, _annotation(field), (*loc, key))
                if value is not _BAD:
                    found[key] = value
            elif key in model.tolerated:
                self.notes.append(Problem(place.line, f"{place.written}: {model.tolerated[key]}"))
            else:
                close = suggest(key, [*names, *model.tolerated]) if len(self._problems) <= MAX_PROBLEMS else ""
                reason = f"there is no such key{close}"
                self._problems.append(Problem(place.line, f"{place.written}: {reason}"))
        return found


def _tag(node: yaml.Node) -> str:
    return node.tag


def _key_reason(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        return "a key must be one word"
    if _tag(node).endswith(":merge"):
        return "merge keys are not read here; write the keys out"
    return f"YAML does not read the key {shown(str(node.value))} as text; put it in quotes"


def _field_names(model: type[Settings]) -> dict[str, str]:
    """Every accepted spelling of a key, to the field's own name."""
    names: dict[str, str] = {}
    for name, field in model.model_fields.items():
        choices = field.validation_alias.choices if isinstance(field.validation_alias, AliasChoices) else []
        names.update((choice, name) for choice in choices if isinstance(choice, str))
        names[name] = name
    return names


def _annotation(field: FieldInfo) -> object:
    return cast("object", field.annotation)


def _is_model(shape: object) -> bool:
    return isinstance(shape, type) and issubclass(shape, Settings)


def _shapes(wanted: object) -> Iterator[object]:
    """The alternatives of a type, without Annotated and Optional around them."""
    origin = get_origin(wanted)
    if origin is Annotated:
        yield from _shapes(get_args(wanted)[0])
    elif origin is Union or origin is types.UnionType:
        for member in get_args(wanted):
            yield from _shapes(member)
    else:
        yield wanted


def _item(shapes: tuple[object, ...], containers: tuple[type, ...]) -> object:
    """What such a container holds; `object`, which accepts anything, when no container was wanted."""
    for shape in shapes:
        if get_origin(shape) in containers:
            return next((arg for arg in reversed(get_args(shape)) if arg is not Ellipsis), object)
    return object
