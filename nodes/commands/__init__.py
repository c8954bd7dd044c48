"""The commands: the one place where concrete parts are chosen and joined."""
