"""How it travels: the bus, the embedded server, the ledger, links to other nodes, bridges."""
