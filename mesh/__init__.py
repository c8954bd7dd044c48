"""How it travels: the bus, the embedded server, the ledger."""
