"""The bus over NATS: the home of nats-py."""
