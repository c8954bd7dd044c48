"""Words of others, made safe to show."""

LINE_LIMIT = 300  # characters: one line of a terminal or a log, not a flood


def plain(text: str, limit: int = LINE_LIMIT) -> str:
    """One printable line of at most `limit` characters: no control characters, terminal escapes or line breaks."""
    kept = "".join(c if c.isprintable() else " " for c in text[: 4 * limit])
    line = " ".join(kept.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
