"""How commands lay out what they found: columns and times. Words of others pass `mesh.words.plain` first."""

import shutil
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from mesh.words import plain
from nodes.wrapping import broken

GAP = "  "


def lines(texts: Iterable[str], hang: int | None = None) -> None:
    """Write lines to standard output; what it cannot say (half characters, an old terminal) becomes `?`.

    With `hang`, lines that are too long for a terminal are broken between words, and go on after so many columns.
    """
    encoding = sys.stdout.encoding or "utf-8"
    if hang is not None and sys.stdout.isatty():
        columns = shutil.get_terminal_size().columns
        texts = [line for text in texts for line in broken(text, columns, hang)]
    sys.stdout.write("".join(f"{text}\n" for text in texts).encode(encoding, "replace").decode(encoding))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest cell on a terminal; every cell is made safe to show."""
    cells = [list(head), *([plain(cell) for cell in row] for row in rows)]
    widths = [max(map(_columns, column)) for column in zip(*cells, strict=True)]
    return [GAP.join(map(_padded, row, widths)).rstrip() for row in cells]


def _columns(cell: str) -> int:
    if cell.isascii():
        return len(cell)
    from rich.cells import cell_len

    return cell_len(cell)


def _padded(cell: str, width: int) -> str:
    return cell + " " * (width - _columns(cell))


def when(at_ms: int | None) -> str:
    """A time (Unix milliseconds) as this machine's clock shows it; a dash for none, or for one that cannot be."""
    try:
        return "-" if at_ms is None else f"{datetime.fromtimestamp(at_ms / 1000, UTC).astimezone():%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError, OSError):
        return "-"


def counted(number: int, what: str) -> str:
    """`1 note`, `3 notes`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
