"""What a mesh costs in a large swarm: `mesh sim` with more and more meshes, and with more and more relationships.

Each run is a process of its own, on one core. The same talk everywhere: two words of each person in an hour, each of
which an em of a peer answers, in basins that each mesh shares with all its peers.

    python bench/scale.py --plot docs/scale.svg
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

TALK = ("--hours", "1", "--talk", "2", "--chance", "0", "--history", "1", "--sign", "0.05")
TROUBLE = ("--hostile", "0.01", "--partition", "0.1", "--broken", "0.001")
NODES = (100, 1_000, 10_000)
LINKS = (5, 20, 80)
USUAL_LINKS, USUAL_NODES = 20, 1_000
AGAIN = 3  # runs of what is short; the quickest counts, since others use the machine as well
SHORT = 2_000  # meshes


@dataclass(frozen=True)
class Cost:
    """Of one mesh: CPU milliseconds of an hour's talk and of linking, memory in KiB, messages, acts heard."""

    nodes: int
    links: int
    talk_ms: float
    link_ms: float
    memory_kib: float
    messages: float
    heard: float


def run(nodes: int, links: int) -> dict[str, Any]:
    """One simulation."""
    argv = [sys.executable, "-m", "nodes.cli", "sim", "--json", "--nodes", str(nodes), "--links", str(links)]
    done = subprocess.run([*argv, *TALK, *TROUBLE], capture_output=True, text=True, check=False)
    told = json.loads(done.stdout)
    assert told["kept"], told["breaches"]
    return told


def measure(nodes: int, links: int, base_mib: float) -> Cost:
    """The cost of a mesh among so many, with so many relationships."""
    runs = [run(nodes, links) for _ in range(AGAIN if nodes < SHORT else 1)]
    best = min(runs, key=lambda told: told["cost"]["talking_cpu_s"])
    cost = best["cost"]
    return Cost(
        nodes,
        links,
        cost["talking_cpu_s"] / nodes * 1e3,
        min(told["cost"]["linking_cpu_s"] for told in runs) / nodes * 1e3,
        (cost["peak_mib"] - base_mib) / nodes * 1024,
        cost["messages"] / nodes,
        best["delivered"] / nodes,
    )


def show(costs: list[Cost]) -> None:
    """A row for each."""
    table = Table(title="what one mesh costs, for an hour of talk")
    for column in ("meshes", "relationships", "CPU ms", "linking, CPU ms", "memory KiB", "messages", "acts heard"):
        table.add_column(column, justify="right")
    for one in costs:
        table.add_row(
            f"{one.nodes:,}",
            f"{one.links}",
            f"{one.talk_ms:.1f}",
            f"{one.link_ms:.1f}",
            f"{one.memory_kib:.0f}",
            f"{one.messages:.0f}",
            f"{one.heard:.0f}",
        )
    Console(width=120).print(table)


WIDTH, HEIGHT, LEFT, TOP, PANEL, DEEP = 760, 320, 60, 40, 280, 210
STYLE = """text{font:13px sans-serif;fill:#6e7781}
@media(prefers-color-scheme:dark){text{fill:#9aa4ae}}.t{font-size:14px;font-weight:600}
.a{stroke:#8b949e;stroke-width:1}.l{fill:none;stroke:#2f81f7;stroke-width:2}.p{fill:#2f81f7}"""


def panel(title: str, left: int, points: list[tuple[str, float]], places: list[float]) -> str:
    """A line through points, from 0 up; `places` from 0 to 1 say where they stand."""
    top = max(value for _, value in points) * 1.25
    across = [left + 25 + round(place * (PANEL - 50)) for place in places]
    up = [round(TOP + DEEP * (1 - value / top)) for _, value in points]
    base = TOP + DEEP
    parts = [
        f'<text class="t" x="{left}" y="{TOP - 16}">{title}</text>',
        f'<path class="a" d="M{left} {TOP}V{base}H{left + PANEL}" fill="none"/>',
        f'<path class="l" d="M{"L".join(f"{x} {y}" for x, y in zip(across, up, strict=True))}"/>',
    ]
    for (label, value), x, y in zip(points, across, up, strict=True):
        parts.append(f'<circle class="p" cx="{x}" cy="{y}" r="4"/>')
        parts.append(f'<text x="{x}" y="{y - 10}" text-anchor="middle">{value:.1f}</text>')
        parts.append(f'<text x="{x}" y="{base + 20}" text-anchor="middle">{label}</text>')
    return "\n".join(parts)


def plot(by_nodes: list[Cost], by_links: list[Cost]) -> str:
    """Both rows as SVG, whose greys and blue can be read on white and on black."""
    even = [at / (len(by_nodes) - 1) for at in range(len(by_nodes))]
    true = [cost.links / by_links[-1].links for cost in by_links]
    one = panel("CPU ms of a mesh, by meshes", LEFT, [(f"{cost.nodes:,}", cost.talk_ms) for cost in by_nodes], even)
    middle = LEFT + PANEL + 60
    other = panel("CPU ms of a mesh, by its relationships", middle, [(f"{c.links}", c.talk_ms) for c in by_links], true)
    axes = [
        f'<text x="{LEFT + PANEL // 2}" y="{HEIGHT - 16}" text-anchor="middle">meshes, of 20 relationships each</text>',
        f'<text x="{middle + PANEL // 2}" y="{HEIGHT - 16}" text-anchor="middle">relationships, among 1,000</text>',
    ]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
    title = "<title>The cost of a mesh does not depend on how many there are, but on its relationships</title>"
    return "\n".join([head, title, f"<style>{STYLE}</style>", one, other, *axes, "</svg>", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", default=",".join(map(str, NODES)), help="numbers of meshes")
    parser.add_argument("--plot", type=Path, help="an SVG file to write")
    options = parser.parse_args()
    base_mib = run(2, 1)["cost"]["peak_mib"]
    by_nodes = [measure(int(word), USUAL_LINKS, base_mib) for word in options.nodes.split(",")]
    by_links = [measure(USUAL_NODES, links, base_mib) for links in LINKS]
    show(by_nodes)
    show(by_links)
    if options.plot:
        options.plot.write_text(plot(by_nodes, by_links), "utf-8")


if __name__ == "__main__":
    main()
