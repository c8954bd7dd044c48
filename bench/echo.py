"""What `echo` costs and how well it knows a voice: `python bench/echo.py [--chat FILE] [--held-out FILE]`.

The log is any IRC-like text, scenes parted by `---` or `%`; without one, all starter ems' logs together. Without
held-out text, the last tenth of the scenes is held out. All of it is taken as one voice. `xz` and `bz2` are the rivals:
the bytes that compressing the held-out text adds to compressing the training text.
"""

import argparse
import asyncio
import bz2
import hashlib
import lzma
import re
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from nodes.chatlog import Line, Scene, Voice, parse, render
from nodes.models.base import Request
from nodes.models.echo import Echo
from nodes.models.echo_voice import Fitted, installed_prior
from nodes.ngram import DEFAULT_ORDER, KneserNey, Mixture, with_background

REPLIES = 30
TURNS = 12
Made = TypeVar("Made")


def timed(work: Callable[[], Made]) -> tuple[Made, float, float]:
    """A result with the wall and the CPU seconds that it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    made = work()
    return made, time.perf_counter() - wall, time.process_time() - cpu


def voice_of(scenes: Iterable[Scene], name: str, *, everybody: bool) -> Voice:
    """These scenes as a voice: of one speaker, or of all of them together."""
    kept = tuple(scenes)
    text = text_of(kept)
    authors = frozenset(line.author.lower() for scene in kept for line in scene.lines if line.author)
    names = authors if everybody else frozenset({name.lower()})
    return Voice(name, names, kept, (), f"b2:{hashlib.blake2b(text).hexdigest()}")


def text_of(scenes: Iterable[Scene]) -> bytes:
    """The scenes as a log."""
    return "\n".join(render(scene.lines).rstrip("\n") for scene in scenes).encode() + b"\n"


def read(path: str) -> tuple[Scene, ...]:
    """A log whose scenes are parted by `---` or, as in fortune files, by `%`."""
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    return parse(re.sub(r"(?m)^%$", "---", text), Path(path).name)


def table_of_bits(train: bytes, held_out: bytes, background: bytes) -> None:
    """Bits per byte of the held-out text, lower is better, and what each fit costs."""
    own, background_model = KneserNey.fit(train), KneserNey.fit(background)
    rows: list[tuple[str, Callable[[], KneserNey | Mixture], int]] = [
        (f"Kneser-Ney, own text, order {DEFAULT_ORDER}", lambda: KneserNey.fit(train), own.nbytes),
        ("  .7 own + .3 background, separate", lambda: Mixture((0.7, own), (0.3, background_model)), own.nbytes),
        ("  .3 own + .7 joint", lambda: with_background(train, background), 0),
    ]
    print(f"train {len(train):,} bytes, held out {len(held_out):,}, background {len(background):,}\n")
    print(f"{'model':38}{'bits/byte':>10}{'fit ms':>9}{'CPU ms':>9}{'score kB/CPU-s':>16}{'MB':>7}")
    for name, fit, nbytes in rows if background else rows[:1]:
        model, wall, cpu = timed(fit)
        bits, _, score_cpu = timed(lambda model=model: model.bits_per_byte(held_out))
        rate = len(held_out) / 1000 / max(score_cpu, 1e-6)
        size = f"{nbytes / 1e6:.1f}" if nbytes else ""
        print(f"{name:38}{bits:10.3f}{wall * 1000:9.1f}{cpu * 1000:9.1f}{rate:16.0f}{size:>7}")
    rivals: list[tuple[str, Callable[[bytes], bytes]]] = [
        ("xz -9e, incremental", lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),
        ("bz2 -9, incremental", bz2.compress),
    ]
    for name, compress in rivals:
        added = len(compress(train + held_out)) - len(compress(train))
        print(f"{name:38}{8 * added / len(held_out):10.3f}")


async def say(model: Echo, who: Voice, room: list[Line], seed: int) -> str:
    """One reply at temperature 0.8."""
    asked = Request("echo", (), who, tuple(room[-24:]), 0.8, 200, (), seed)
    return "".join([part async for part in model.stream(asked) if isinstance(part, str)])


def replies(model: Echo, who: Voice, held_out: tuple[Scene, ...]) -> None:
    """CPU seconds a reply, to held-out lines, and some of them to look at."""
    asked = [line.text for scene in held_out for line in scene.lines[:1]] or ["hello"]
    spent: list[float] = []
    print(f"\nreplies of {who.name}:")
    for number in range(REPLIES):
        said = asked[number % len(asked)]
        room = [Line("somebody", said, "bench")]
        text, _, cpu = timed(lambda room=room, number=number: asyncio.run(say(model, who, room, number)))
        spent.append(cpu)
        if number < REPLIES // 2:
            print(f"  > {said[:100]!r}\n    {text}")
    print(f"\nCPU ms a reply: median {statistics.median(spent) * 1000:.0f}, most {max(spent) * 1000:.0f}, of {REPLIES}")


def dialogue(model: Echo, scenes: tuple[Scene, ...]) -> None:
    """The two who speak most in the log, answering each other."""
    count: dict[str, int] = {}
    for line in (line for scene in scenes for line in scene.lines if line.author):
        count[str(line.author)] = count.get(str(line.author), 0) + 1
    pair = [voice_of(scenes, name, everybody=False) for name in sorted(count, key=lambda n: -count[n])[:2]]
    room = [Line("somebody", "what shall we talk about?", "bench")]
    print("\na dialogue:")
    for turn in range(TURNS if len(pair) == 2 else 0):
        who = pair[turn % 2]
        room.append(Line(who.name, asyncio.run(say(model, who, room, turn)), "bench"))
        print(f"  <{who.name}> {room[-1].text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chat", help="the log to learn from")
    parser.add_argument("--held-out", help="text of the same voice that is not in the log")
    parser.add_argument("--background", nargs="*", default=[], help="other texts; without any, the starter ems' logs")
    options = parser.parse_args()
    scenes = read(options.chat) if options.chat else installed_prior().chat
    cut = len(scenes) if options.held_out else len(scenes) - max(1, len(scenes) // 10)
    train, held_out = scenes[:cut], read(options.held_out) if options.held_out else scenes[cut:]
    seen = {text_of([scene]) for scene in (*scenes, *held_out)}  # background that holds the answers would not be fair
    others = [scene for path in options.background for scene in read(path)] or installed_prior().chat
    background = [scene for scene in others if text_of([scene]) not in seen]
    table_of_bits(text_of(train), text_of(held_out), text_of(background) if background else b"")

    model, who = Echo(), voice_of(train, "everybody", everybody=True)
    fitted, wall, cpu = timed(lambda: Fitted.of(who))
    _, prior_wall, _ = timed(model.background)
    print(f"\nfitting the voice: {len(fitted.lines)} lines, {wall * 1000:.0f} ms, {cpu * 1000:.0f} CPU ms, ", end="")
    print(f"{fitted.nbytes / 1e6:.1f} MB; the shared background once: {prior_wall * 1000:.0f} ms")
    replies(model, who, held_out)
    dialogue(model, train)


if __name__ == "__main__":
    main()
