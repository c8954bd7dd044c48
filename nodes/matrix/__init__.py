"""Matrix for a node: rooms are basins, people are authors, and every em is a user."""
