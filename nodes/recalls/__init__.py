"""Asking another's memory, with their permission: questions over a link, answered with signed acts and a receipt."""
