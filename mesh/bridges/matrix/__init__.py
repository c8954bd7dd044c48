"""The Matrix driver: one port, two ways in, durable both ways. It knows events and rooms, and nothing of ems or acts.

port      values and the interface               inbox, outbox   what came and what goes, in the node's database
api       HTTP to the homeserver                 appservice, account   the two ways in
content   building event contents (pure)         reading, sync   event contents and syncs into values (pure, total)
calls     asking beside speaking                 rooms           the state of rooms into values (pure, total)
several   accounts of their own beside a way     link            a room that carries frames between nodes
push      where an appservice is pushed to       rows            the outbox's table
crypto    what is sealed and opened, for a way   fleet           which devices there are
device    one device, at the homeserver          engine          its keys (nio)
vault     the folder of a user's keys            sealed          events that wait for a key
strangers  how much a device keeps of others     shape           JSON from outside as what it should be
"""
