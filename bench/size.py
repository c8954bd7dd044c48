"""What an installation takes: megabytes and distributions of the virtual environment that runs this.

    ENVIRONMENT/bin/python bench/size.py

Counted are the bytes of files, 10^6 to a megabyte, without links; byte-compiled files (.pyc) are shown apart, since
an installation may make them or not. A virtual environment holds no Python of its own.
"""

import importlib.metadata
import sys

sys.dont_write_bytecode = True  # or looking would add to what is seen

from collections.abc import Iterable  # noqa: E402 - after the line above, which the rest obeys
from pathlib import Path  # noqa: E402 - same

from rich.console import Console  # noqa: E402 - same
from rich.table import Table  # noqa: E402 - same

MAX_MB, MAX_DISTRIBUTIONS = 180, 60  # what an installation of the runtime must not exceed
SHOWN = 10


def size(files: Iterable[Path]) -> int:
    """Bytes of those that are files, without links."""
    return sum(file.lstat().st_size for file in files if file.is_file() and not file.is_symlink())


def of_distribution(one: importlib.metadata.Distribution) -> int:
    """Bytes of what a distribution says that it installed, without byte-compiled files."""
    paths = (Path(str(file.locate())) for file in one.files or () if file.suffix != ".pyc")
    return size(path for path in paths if path.exists())


def main() -> None:
    if sys.prefix == sys.base_prefix:
        sys.exit("run this with the python of a virtual environment: it counts all that is in there")
    files = [file for file in Path(sys.prefix).rglob("*") if "lib64" not in file.relative_to(sys.prefix).parts[:1]]
    compiled = size(file for file in files if file.suffix == ".pyc")
    whole = size(files)
    distributions = {one.name: one for one in importlib.metadata.distributions()}
    table = Table(title="installed in this environment")
    table.add_column("")
    for column in ("MB", "at most"):
        table.add_column(column, justify="right")
    table.add_row("without byte-compiled files", f"{(whole - compiled) / 1e6:.1f}", f"{MAX_MB}")
    table.add_row("with those that there are", f"{whole / 1e6:.1f}", "")
    table.add_section()
    largest = sorted(((of_distribution(one), name) for name, one in distributions.items()), reverse=True)
    for taken, name in largest[:SHOWN]:
        table.add_row(f"{name} {distributions[name].version}", f"{taken / 1e6:.1f}", "")
    rest = sum(taken for taken, _ in largest[SHOWN:])
    table.add_row(f"the other {max(len(largest) - SHOWN, 0)}", f"{rest / 1e6:.1f}", "")
    table.add_section()
    table.add_row("distributions", f"{len(distributions)}", f"{MAX_DISTRIBUTIONS}")
    Console(width=100).print(table)
    if "ampmesh" not in distributions:
        Console().print("ampmesh itself is not among them")


if __name__ == "__main__":
    main()
