"""Draw what `mesh demo` shows: python docs/picture.py, which writes docs/demo.svg."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

WIDTH = 100  # columns, which a README shows without shrinking
LINES = 15  # of the show, after which the picture leaves out all but its end
NEXT = 3  # lines about what to do next


def main() -> None:
    """Run the demo on a terminal of its own and keep its colours."""
    command = f"{sys.executable} -m nodes.cli demo --fast"
    environment = os.environ | {"COLUMNS": str(WIDTH), "TERM": "xterm-256color"}
    shown = subprocess.run(
        ["script", "-qec", f"stty cols {WIDTH} && {command}", "/dev/null"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    lines = Text.from_ansi(shown.stdout.replace("\r", "")).split()
    lines = lines[:-NEXT]
    last = max(place for place, line in enumerate(lines[:-1]) if not line.plain.startswith(" "))
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    for line in [Text("$ mesh demo", style="bold"), *lines[:LINES], Text("⋮"), *lines[last:]]:
        console.print(line)
    svg = console.export_svg(title="mesh demo", theme=MONOKAI)
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)  # nothing is fetched to show a picture
    Path(__file__).with_name("demo.svg").write_text(svg, "utf-8")


if __name__ == "__main__":
    main()
