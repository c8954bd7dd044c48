"""The Matrix driver: one port, two ways in, durable both ways. It knows events and rooms, and nothing of ems or acts.

port      values and the interface               inbox, outbox   what came and what goes, in the node's database
api       HTTP to the homeserver                 appservice, account   the two ways in
content   building event contents (pure)         reading         event contents into values (pure, total)
"""
