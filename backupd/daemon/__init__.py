"""`backupd run`: everything that happens by itself.

service     start, signals, reload, end
charge      what it is in charge of under one configuration
timetable   when things are done next (the only module that knows APScheduler)
rounds      when a snapshot is wanted: sight finds what, asking decides what for, retries when again
snapshots   one database's turn; rotations prunes after it
chores      drills and prunes
runs        what is going on now
attention   who has to be told
http        who asks
"""

from backupd.daemon.service import serve

__all__ = ["serve"]
