"""A new em's folder, for a person to fill."""

import shutil
from pathlib import Path

from nodes.commented import commented
from nodes.em import EM_NAME
from nodes.em_settings import EmSettings
from nodes.errors import NodeError

_CHAT = """\
<you> hello, {name}. what goes into this file?
<{name}> Lines such as these: a name between < and >, then what was said.
<{name}> I am made of what stands here, so write how I talk. A hundred lines make a character.
---
<you> and the three dashes?
<{name}> They end a scene. Now replace all of this with a log of my own.
"""


def create_em(ems: Path, name: str) -> Path:
    """Make a folder with every setting, commented out, and a few lines of talk to overwrite. Gives the folder.

    Raises NodeError when the name is none for an em, or taken, or the folder cannot be written.
    """
    if not EM_NAME.fullmatch(name):
        raise NodeError(f"{name[:80]!a} is no name for an em; use 1 to 32 of a-z, 0-9, _ and -, no sign first")
    folder, part = ems / name, ems / f".{name}.part"  # a running node takes no notice of hidden folders
    if folder.exists() or folder.is_symlink():
        raise NodeError(f"{folder} is there already; nothing was changed")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        (part / "config.yaml").write_text(commented("Settings of an em", EmSettings()), "utf-8")
        (part / "chat.txt").write_text(_CHAT.format(name=name), "utf-8")
        part.rename(folder)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise NodeError(f"{folder} cannot be made: {error.strerror or error}") from None
    return folder
