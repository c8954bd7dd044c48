"""What is said: addresses, keys, frames, acts, budgets, vocabulary. Pure: bytes and values in, values out."""
