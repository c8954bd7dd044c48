"""A headless Chromium, and pages for it that come from this machine, as everything does that they load."""

import shutil
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from aiohttp import web
from homeserver import INSTALLED, free_port

if TYPE_CHECKING:
    from playwright.async_api import BrowserContext

HERE = Path(__file__).parent.parent / "browser"
MODULES = HERE / "node_modules"
CHROMIUM = shutil.which("chromium-headless-shell") or shutil.which("chromium")
TOOLS = {
    "chromium": CHROMIUM,
    "playwright (PyPI)": find_spec("playwright"),
    "node_modules (npm)": MODULES.exists(),
    "matrix-synapse (PyPI)": INSTALLED,
}
MISSING = ", ".join(name for name, there in TOOLS.items() if not there)
FLAGS = [
    "--no-sandbox",  # of no use to root, which containers are run by
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
]


@asynccontextmanager
async def browsing() -> AsyncGenerator["BrowserContext"]:
    """A browser. Every request that its pages make must be to this machine, and no script may fail."""
    from playwright.async_api import async_playwright

    hosts, failures = set[str | None](), list[str]()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        context = await browser.new_context()
        context.on("weberror", lambda error: failures.append(str(error.error)))
        context.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
        yield context
        await browser.close()
    assert hosts == {"127.0.0.1"}, hosts
    assert not failures, failures


@asynccontextmanager
async def served(files: Mapping[str, Path]) -> AsyncGenerator[str]:
    """Files by their paths, and all packages below `/npm`; yields the address of it all."""

    async def root(request: web.Request) -> web.FileResponse:
        return web.FileResponse(files[request.path])

    app = web.Application()
    app.router.add_routes([web.get(path, root) for path in files])
    app.router.add_static("/npm", MODULES)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
    await runner.setup()
    try:
        port = free_port()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield f"http://127.0.0.1:{port}/"
    finally:
        await runner.cleanup()
