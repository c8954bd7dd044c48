"""`mesh sim`: a swarm of meshes in virtual time, to try policies on before they meet anybody."""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nodes.commands.common import FAILED, add_json, print_json

if TYPE_CHECKING:  # what these need takes longer to import than help may take
    from nodes.sim.report import Run
    from nodes.sim.scenario import Scenario
    from nodes.sim.swarm import Swarm
    from nodes.sim.whole import WholeSwarm

SHAPES: Final = ("random", "ring", "star", "line", "small-world")
NUMBERS: Final[dict[str, tuple[type, str]]] = {  # option: what it is, and help; defaults stand in nodes.sim.scenario
    "nodes": (int, "meshes (24)"),
    "links": (int, "relationships of each, about (4)"),
    "relays": (float, "share of meshes that pass on a peer's basin to another peer (0.25)"),
    "hours": (float, "how long people talk (6)"),
    "talk": (float, "what a person says an hour (4)"),
    "history": (int, "what each said before they were linked (3)"),
    "ems": (int, "ems of a mesh (1)"),
    "chance": (float, "that an em answers what does not name it (0.1)"),
    "hostile": (float, "share of meshes that are hostile (0.34)"),
    "partition": (float, "share that is cut off for the middle third (0.25)"),
    "broken": (float, "chance that a message breaks its wire (0.002)"),
    "latency": (int, "milliseconds from mesh to mesh (80)"),
    "skew": (float, "clocks are wrong by up to so many seconds (2)"),
    "sign": (float, "share of frames that are signed and checked (1)"),
    "seed": (int, "another seed is another swarm (1)"),
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("file", nargs="?", type=Path, help="a YAML file with any of these, such as `nodes: 100`")
    parser.add_argument("--shape", choices=SHAPES, help="who is linked with whom (small-world)")
    parser.add_argument("--basins", choices=("own", "common"), help="what is shared: each an own basin, or all one")
    parser.add_argument("--trust", choices=("close", "known", "guest"), help="how each sees its peers (known)")
    parser.add_argument("--budget", metavar="HOPS,ACTS", help="of a chain that a person begins (6,16)")
    parser.add_argument("--quota", metavar="ACTS,CHAINS,TOKENS", help="a minute, a day, a day (120,50,20000); or trust")
    for name, (kind, help_text) in NUMBERS.items():
        parser.add_argument(f"--{name}", type=kind, metavar="N", help=help_text)
    parser.add_argument(
        "--whole", action="store_true", default=None, help="whole nodes, each on a bus in memory (12; 1 h)"
    )
    add_json(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    """Exit code 1 when a promise was broken."""
    from nodes.commands.logs import configure
    from nodes.layout import lines
    from nodes.sim.report import as_json, told
    from nodes.sim.scenario import scenario

    configure(os.environ.get("AMPMESH_LOG", "error"))  # cuts and refusals are what a simulation is about
    names = [*NUMBERS, "shape", "basins", "trust", "budget", "quota", "whole"]
    given: dict[str, Any] = {name: value for name in names if (value := getattr(options, name)) is not None}
    done = simulate(scenario(options.file, given))
    if options.json:
        print_json(as_json(done))
    else:
        lines(told(done))
    return FAILED if done.outcome.broken else 0


def simulate(plan: "Scenario") -> "Run":
    """Run a scenario."""
    import gc
    import time

    from nodes.sim.report import Run

    gc.disable()  # light meshes make no garbage in circles, and to look for it takes longer the more there are
    try:
        began = time.process_time()
        swarm = _swarm(plan)
        linked, memory = time.process_time(), _peak_mib()
        outcome = swarm.run()
        cost = {
            "linking_cpu_s": round(linked - began, 3),
            "talking_cpu_s": round(time.process_time() - linked, 3),
            "linked_mib": memory,
            "peak_mib": _peak_mib(),
            "messages": swarm.messages,
        }
        return Run(plan, outcome, swarm.refusals, swarm.silences, swarm.hostile, swarm.digest(), cost)
    finally:
        gc.enable()


def _swarm(plan: "Scenario") -> "Swarm | WholeSwarm":
    """Whole nodes, or the rules alone."""
    if plan.whole:
        import gc

        from nodes.commands.joining import SCHEMAS
        from nodes.sim.whole import WholeSwarm

        gc.enable()
        return WholeSwarm(plan, SCHEMAS)
    from nodes.sim.swarm import Swarm

    return Swarm(plan)


def _peak_mib() -> int:
    """The most memory that this process ever had; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak >> (20 if sys.platform == "darwin" else 10)  # bytes there, kibibytes elsewhere
