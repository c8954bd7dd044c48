"""mesh.yaml: its defaults, its bounds, and the file that `mesh init` writes."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodes.config import Basin, MeshConfig, starter_mesh_yaml
from nodes.errors import ConfigError
from nodes.settings import Settings, load


def config(tmp_path: Path, text: str) -> MeshConfig:
    path = tmp_path / "mesh.yaml"
    path.write_text(text)
    return load(path, MeshConfig)


def uncommented(text: str) -> str:
    return re.sub(r"^( *)#(?! )", r"\1", text, flags=re.MULTILINE)


def fields(model: type[Settings]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        assert field.description, f"{model.__name__}.{name} has no description"
        yield name


@pytest.mark.parametrize("name", ["amp", "my-mesh", "no", "1e3", "null", "007"])
def test_the_starter_file_gives_the_defaults_with_and_without_its_comments(tmp_path: Path, name: str) -> None:
    text = starter_mesh_yaml(name)
    assert config(tmp_path, text) == config(tmp_path, uncommented(text)) == MeshConfig(name=name)


def test_uncommenting_the_starter_file_sets_every_key(tmp_path: Path) -> None:
    read = config(tmp_path, uncommented(starter_mesh_yaml("amp")))
    for part in (read, read.server, read.models, read.limits, read.basins["yappings"], read.basins["yappings"].budget):
        assert set(fields(type(part))) == part.model_fields_set


def test_each_key_of_the_starter_file_may_be_uncommented_alone(tmp_path: Path) -> None:
    lines = starter_mesh_yaml("amp").splitlines()
    keys = [at for at, line in enumerate(lines) if re.match(r" *#\S", line)]
    assert len(keys) >= 14
    for at in keys:
        changed = [*lines[:at], uncommented(lines[at]), *lines[at + 1 :]]
        assert config(tmp_path, "\n".join(changed)) == MeshConfig(name="amp")


def test_the_human_is_called_like_the_mesh_until_told_otherwise(tmp_path: Path) -> None:
    assert config(tmp_path, "name: amp").human == "amp"
    assert config(tmp_path, "name: amp\nhuman: mara").human == "mara"


def test_yappings_is_always_there_and_generous_where_nothing_else_is_said(tmp_path: Path) -> None:
    read = config(tmp_path, "basins:\n  garden: {budget: {hops: 3}}\n  yappings: {budget: {acts: 7}}\n")
    garden, yappings, other = (read.basin(name).budget for name in ("garden", "yappings", "elsewhere"))
    assert (garden.hops, garden.acts, garden.tokens, garden.minutes) == (3, 16, 50_000, 10)
    assert (yappings.hops, yappings.acts, yappings.tokens, yappings.minutes) == (24, 7, 200_000, 10)
    assert (other.hops, other.acts) == (6, 16)
    assert config(tmp_path, "basins: {garden: }").basins == {
        "garden": Basin(),
        "yappings": MeshConfig().basins["yappings"],
    }


def test_vendors_are_read_whole(tmp_path: Path) -> None:
    read = config(
        tmp_path,
        """
models:
  default: mistral-small
  vendors:
    some-where:
      base-url: https://api.example.org/v1
      api-key-file: keys/somewhere
      provides: [mistral-*]
      images: [mistral-m*]
      prices: {input: 1, output: 2.5}
    local: {base_url: "http://localhost:8080/v1", provides: ["*"], api: completions}
""",
    )
    vendor = read.models.vendors["some-where"]
    assert list(read.models.vendors) == ["some-where", "local"]
    assert (vendor.images, read.models.vendors["local"].images) == (("mistral-m*",), ())
    assert vendor.prices is not None
    assert vendor.prices.output == 2.5
    assert read.resolve(tmp_path, vendor.api_key_file or "") == tmp_path / "keys/somewhere"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("name: A B", "1: name: 'A B' is not a name"),
        ("naem: amp", "did you mean 'name'?"),
        ("log-level: warn", "1: log-level: must be one of debug, info, warning, error; did you mean 'warning'?"),
        ("server: {url: 'http://x'}", "must be a URL that begins with nats://"),
        ("server: {url: 'nats://me:pw@x'}", "must hold no password"),
        ("server: {url: 'nats://x:99999'}", "is not a URL"),
        ("server: {port: 70000}", "must be at most 65535"),
        ("limits: {model_calls: 0}", "must be at least 1"),
        ("basins: {garden: {budget: {hops: 65}}}", "basins.garden.budget.hops: must be at most 64"),
        ("basins: {yappings: 3}", "basins.yappings: must be `key: value` lines"),
        ("basins: {yappings: {budget: 3}}", "basins.yappings.budget: must be `key: value` lines"),
        ("basins: [yappings]", "basins: must be `key: value` lines"),
        ("basins: {Garden: {}}", "basins.Garden: 'Garden' is not a name"),
        ("models: {vendors: {a: {provides: [x]}}}", "models.vendors.a.base_url: is needed and not given"),
        ("models: {vendors: {a: {base_url: 'ftp://x', provides: [x]}}}", "begins with https:// or http://"),
        ("models: {vendors: {a: {base_url: 'http://x', provides: []}}}", "must not be empty"),
        (
            "models: {vendors: {a: {base_url: 'http://x', provides: [x], api_key: sk-12}}}",
            "api_key: there is no such key; did you mean 'api_key_",
        ),
        (
            "models: {vendors: {a: {base_url: 'http://x', provides: [x], api_key_env: A, api_key_file: b}}}",
            "has both api_key_env and api_key_file",
        ),
        (
            "models: {vendors: {a: {base_url: 'http://x', provides: [x], images: [x], api: completions}}}",
            "has images and api: completions, which takes text alone",
        ),
    ],
)
def test_mistakes_are_told_in_one_sentence(tmp_path: Path, line: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, line)
    (problem,) = caught.value.problems
    assert told in problem


@pytest.mark.parametrize("line", ["api_key_env: sk-12ab", "api_key: sk-12ab", "api_key_env: [sk-12ab]"])
def test_a_key_that_was_put_into_the_file_is_not_repeated(tmp_path: Path, line: str) -> None:
    text = f"models: {{vendors: {{a: {{base_url: 'http://x', provides: [x], {line}}}}}}}"
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, text)
    assert "sk-12ab" not in str(caught.value)
