"""Ask an em something and print its answer: python examples/ask.py "aporia, one task for today?"."""

import asyncio
import sys

from nodes.commands.assembly import connect
from nodes.errors import NodeError
from nodes.home import default_home, open_home


async def main(question: str) -> None:
    """Say it in yappings and wait for the first act that answers it."""
    async with connect(open_home(default_home())) as mesh, mesh.listening("yappings") as inbox:
        said = await mesh.say("yappings", question)
        async for heard in inbox:
            if heard.kept and bytes.fromhex(said["id"]) in heard.act.refs:
                print(f"{heard.act.author}: {heard.act.text}")
                return


try:
    asyncio.run(main(sys.argv[1]))
except NodeError as error:
    sys.exit(str(error))
