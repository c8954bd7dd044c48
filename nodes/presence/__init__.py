"""Who is there: the cards of linked peers, and introductions of one peer to another."""
