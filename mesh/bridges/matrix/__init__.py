"""The Matrix driver: one port, two ways in, durable both ways. It knows events and rooms, and nothing of ems or acts.

port         values and the interface               inbox, outbox   what came and what goes, in the node's database
api          HTTP to the homeserver                 appservice, account   the two ways in
common       what both ways share: speaking         calls           asking beside speaking
content      building event contents (pure)         reading, sync   event contents and syncs into values (pure, total)
payload      what an event is sent as (pure)        rooms           the state of rooms into values (pure, total)
several      accounts of their own beside a way     link            a room that carries frames between nodes
push         where an appservice is pushed to       registration    the file by which a homeserver knows an appservice
schema       all tables of the bridge               rows            the outbox's table
crypto       what is sealed and opened, for a way   fleet           which devices there are
device       one device, at the homeserver          engine          its keys (nio)
crosssigning a user's keys that sign devices        verification    declining to compare emoji (pure, total)
vault        the folder of a user's keys            sealed          events that wait for a key
strangers    how much a device keeps of others      attachments     files in encrypted rooms
shape        JSON from outside as it should be      errors          what can go wrong with a homeserver
"""
