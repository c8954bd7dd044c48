"""WebSockets between nodes, and to hubs: the home of aiohttp among the links."""
