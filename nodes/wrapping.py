"""Lines that fit a terminal: broken between words, by the columns that these take."""

from typing import Final

MIN_ROOM: Final = 16  # columns that words get on the narrowest terminal


def broken(text: str, columns: int, hang: int) -> list[str]:
    """A line as lines of fewer than `columns` columns; on a narrow terminal they hang by less than `hang`."""
    if len(text) < columns and text.isascii():
        return [text]
    indent = min(hang, max(columns - 1 - MIN_ROOM, 0))
    first, *rest = wrap(text, max(columns - 1, MIN_ROOM), max(columns - 1 - indent, MIN_ROOM))
    return [first, *(" " * indent + line for line in rest)]


def wrap(text: str, first: int, rest: int) -> list[str]:
    """Break a line into lines of at most `first` columns, then `rest`: between words, or within one that is longer."""
    from rich.cells import cell_len, chop_cells

    lines: list[str] = []
    line: str | None = None
    for word in text.split(" "):
        room = rest if lines else first
        longer = word if line is None else f"{line} {word}"
        if cell_len(longer) <= room:
            line = longer
            continue
        if line is not None:
            lines.append(line)
            room = rest
        if cell_len(word) <= room:
            line = word
            continue
        head = chop_cells(word, room)[0]
        pieces = [head, *chop_cells(word[len(head) :], rest)]
        lines += pieces[:-1]
        line = pieces[-1]
    return [*lines, line or ""]
