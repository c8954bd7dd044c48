"""QR codes for a terminal, by ISO/IEC 18004: as much as an invitation needs.

Alphanumeric mode, error correction L, versions 1 to 5, whose codewords are a single block: up to 154 characters.
"""

from collections.abc import Callable, Iterator
from itertools import groupby, pairwise
from typing import Final

ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ $%*+-./:"
MAX_CHARS: Final = 154
_DATA: Final = {1: 19, 2: 34, 3: 55, 4: 80, 5: 108}  # codewords of data by version
_CHECK: Final = {1: 7, 2: 10, 3: 15, 4: 20, 5: 26}  # and of error correction
_MODE: Final = "0010"
_COUNT_BITS: Final = 9
_PADDING: Final = (0xEC, 0x11)
_FIELD: Final = 0x11D  # GF(256)'s polynomial
_FORMAT: Final = 0x537  # and that of the code that protects the format
_FORMAT_MASK: Final = 0x5412
_LEVEL_L: Final = 0b01
_QUIET: Final = 4  # modules of white around it
_RUN: Final = 5  # modules of one colour in a row that are hard to read
_ON: Final = "\x1b[38;5;16;48;5;231m"  # black on white, whatever the terminal's own colours are
_OFF: Final = "\x1b[0m"

Grid = list[list[bool]]

_MASKS: Final[tuple[Callable[[int, int], bool], ...]] = (
    lambda row, column: (row + column) % 2 == 0,
    lambda row, _: row % 2 == 0,
    lambda _, column: column % 3 == 0,
    lambda row, column: (row + column) % 3 == 0,
    lambda row, column: (row // 2 + column // 3) % 2 == 0,
    lambda row, column: row * column % 2 + row * column % 3 == 0,
    lambda row, column: (row * column % 2 + row * column % 3) % 2 == 0,
    lambda row, column: ((row + column) % 2 + row * column % 3) % 2 == 0,
)


def encode(text: str) -> Grid:
    """The modules of a code, rows from the top, True where dark. Raises ValueError for what does not fit."""
    version = next((one for one, size in _DATA.items() if len(_bits(text)) <= 8 * size), None)
    if version is None:
        raise ValueError(f"a code holds {MAX_CHARS} characters at most")
    data = _padded(_bits(text), _DATA[version])
    stream = "".join(f"{byte:08b}" for byte in (*data, *_check(data, _CHECK[version])))
    grids = [_drawn(version, stream, mask) for mask in range(len(_MASKS))]
    return min(grids, key=_penalty)


def drawn(grid: Grid) -> list[str]:
    """The lines of a code for a terminal: two rows of modules a line, by half blocks, with white around them."""
    size = len(grid) + 2 * _QUIET

    def dark(row: int, column: int) -> bool:
        at, across = row - _QUIET, column - _QUIET
        return 0 <= at < len(grid) and 0 <= across < len(grid) and grid[at][across]

    lines = (
        "".join(" ▄▀█"[2 * dark(row, column) + dark(row + 1, column)] for column in range(size))
        for row in range(0, size, 2)
    )
    return [f"{_ON}{line}{_OFF}" for line in lines]


def _bits(text: str) -> str:
    if any(char not in ALPHABET for char in text):
        raise ValueError("a code here holds capital letters, digits and some signs")
    pairs = [[ALPHABET.index(char) for char in text[at : at + 2]] for at in range(0, len(text), 2)]
    body = "".join(f"{45 * pair[0] + pair[1]:011b}" if len(pair) > 1 else f"{pair[0]:06b}" for pair in pairs)
    return f"{_MODE}{len(text):0{_COUNT_BITS}b}{body}"


def _padded(bits: str, size: int) -> list[int]:
    bits += "0" * min(4, 8 * size - len(bits))
    bits += "0" * (-len(bits) % 8)
    data = [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]
    return data + [_PADDING[at % 2] for at in range(size - len(data))]


def _times(one: int, other: int) -> int:
    """Multiply in GF(256)."""
    product = 0
    while other:
        product ^= one * (other & 1)
        one = one << 1 ^ (_FIELD if one & 0x80 else 0)
        other >>= 1
    return product


def _check(data: list[int], size: int) -> list[int]:
    """The Reed-Solomon remainder."""
    generator, root = [1], 1
    for _ in range(size):
        generator = [a ^ _times(b, root) for a, b in zip([*generator, 0], [0, *generator], strict=True)]
        root = _times(root, 2)
    rest = [*data, *([0] * size)]
    for at in range(len(data)):
        factor = rest[at]
        for offset, value in enumerate(generator):
            rest[at + offset] ^= _times(value, factor)
    return rest[len(data) :]


def _drawn(version: int, stream: str, mask: int) -> Grid:
    size = 17 + 4 * version
    fixed = _fixed(version, size, mask)
    grid = [[fixed.get((row, column), False) for column in range(size)] for row in range(size)]
    bits = iter(stream)
    for row, column in _path(size):
        if (row, column) not in fixed:
            grid[row][column] = (next(bits, "0") == "1") ^ _MASKS[mask](row, column)
    return grid


def _path(size: int) -> Iterator[tuple[int, int]]:
    """All places, in the order of the data: pairs of columns from the right, up and down in turn."""
    upward = True
    for right in (*range(size - 1, 6, -2), 5, 3, 1):  # the sixth column, of timing, is no part of a pair
        for row in reversed(range(size)) if upward else range(size):
            yield row, right
            yield row, right - 1
        upward = not upward


def _fixed(version: int, size: int, mask: int) -> dict[tuple[int, int], bool]:
    """The places that hold no data: what readers find a code by, and its format."""
    found = {(6, at): at % 2 == 0 for at in range(8, size - 8)} | {(at, 6): at % 2 == 0 for at in range(8, size - 8)}
    for top, left in ((3, 3), (3, size - 4), (size - 4, 3)):
        for row in range(max(0, top - 4), min(size, top + 5)):
            for column in range(max(0, left - 4), min(size, left + 5)):
                found[row, column] = max(abs(row - top), abs(column - left)) not in (2, 4)
    if version > 1:
        centre = size - 7
        for row in range(centre - 2, centre + 3):
            for column in range(centre - 2, centre + 3):
                found[row, column] = max(abs(row - centre), abs(column - centre)) != 1
    bits = _format(mask)
    places = [(8, at) for at in (*range(6), 7, 8)] + [(at, 8) for at in (7, *range(5, -1, -1))]
    again = [(at, 8) for at in range(size - 1, size - 8, -1)] + [(8, at) for at in range(size - 8, size)]
    for spots in (places, again):
        found.update((spot, bit == "1") for spot, bit in zip(spots, bits, strict=True))
    found[size - 8, 8] = True
    return found


def _format(mask: int) -> str:
    data = _LEVEL_L << 3 | mask
    rest = data << 10
    for at in range(14, 9, -1):
        if rest >> at & 1:
            rest ^= _FORMAT << (at - 10)
    return f"{(data << 10 | rest) ^ _FORMAT_MASK:015b}"


def _penalty(grid: Grid) -> int:
    """How hard a code is to read: long runs and squares of one colour. The standard counts two rarer things as well."""
    runs = (sum(1 for _ in run) for line in (*grid, *zip(*grid, strict=True)) for _, run in groupby(line))
    squares = sum(
        len({one, other, below, beside}) == 1
        for upper, lower in pairwise(grid)
        for one, other, below, beside in zip(upper, upper[1:], lower, lower[1:], strict=False)
    )
    return sum(length - 2 for length in runs if length >= _RUN) + 3 * squares
