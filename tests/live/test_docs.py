"""The documentation runs: what README and docs tell a person to type works as written."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest
from process import client, make_home, mesh, settled, up

from nodes.cli import COMMANDS

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
APORIA = {"aporia": "reply_on_name: true\n"}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_a_page_names_exists(page: Path) -> None:
    named = set(re.findall(r"(?:`|^)mesh ([a-z]+)", page.read_text("utf-8"), re.MULTILINE))
    assert named <= set(COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_links_to_exists(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), target


def test_the_python_examples_run(tmp_path: Path) -> None:
    """The script of docs/scripting.md and examples/ask.py, each against a real node."""

    async def run() -> list[subprocess.CompletedProcess[str]]:
        home = make_home(tmp_path / "home", APORIA)
        environment = {"AMPMESH_HOME": str(home.path), "PATH": "/usr/bin:/bin"}
        (script,) = blocks(ROOT / "docs" / "scripting.md", "python")
        programs = [("-c", script), (str(ROOT / "examples" / "ask.py"), "aporia, one task for today?")]
        async with up(home):
            return [
                await asyncio.to_thread(
                    subprocess.run,
                    [sys.executable, *program],
                    capture_output=True,
                    text=True,
                    timeout=60,
                    check=False,
                    env=environment,
                )
                for program in programs
            ]

    for ended in asyncio.run(run()):
        assert ended.returncode == 0, ended.stderr
        assert "aporia" in ended.stdout


async def test_the_next_five_minutes_of_the_readme(tmp_path: Path) -> None:
    """Every `mesh` line of README against one home, in order; `up` runs beside them as in its own terminal."""
    told = [
        line for block in blocks(ROOT / "README.md", "sh") for line in block.splitlines() if line.startswith("mesh")
    ]
    commands = [re.findall(r'"[^"]*"|\S+', line.split("#")[0])[1:] for line in told]
    assert [command[0] for command in commands] == ["init", "up", "chat", "why", "say", "status", "doctor"]
    home = make_home(tmp_path / "home", APORIA)
    async with up(home):
        for command in commands[2:]:
            words = [word.strip('"') for word in command]
            stdin = "aporia, hello\n" if words[0] == "chat" else ""
            ended = await asyncio.to_thread(mesh, *words, "--home", home.path, stdin=stdin)
            assert ended.returncode == 0, (command, ended.stderr, ended.stdout)
            assert ended.stdout
        async with client(home) as one:
            assert "aporia, one task for today?" in [entry["text"] for entry in await settled(one)]


def test_yaml_in_the_readme_is_settings_that_mesh_yaml_takes(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", APORIA)
    (yaml,) = blocks(ROOT / "README.md", "yaml")
    (home.path / "mesh.yaml").write_text(yaml, "utf-8")
    assert home.config().models.vendors["somewhere"].provides == ("some-*",)
