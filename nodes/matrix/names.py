"""What rooms are called where their owner reads of them: their ids are long, and say nothing."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from mesh.words import plain


def names(rooms: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Names by room id (of `matrix_rooms` answers), for the rooms that are alone in having theirs."""
    known = {room["room"]: plain(room["name"]) for room in rooms}
    times = Counter(known.values())
    return {room: name for room, name in known.items() if name and times[name] == 1}
