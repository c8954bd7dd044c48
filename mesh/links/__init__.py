"""Links to other people's nodes: signed frames over any wire that carries bytes."""
