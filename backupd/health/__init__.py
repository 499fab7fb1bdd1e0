"""How each database is doing in each store: remembered in one file, judged, and told to those who should know.

    values     what is remembered
    file       the status file; codec is what it looks like
    recording  what each outcome changes in it;  planning  what the daemon means to do;  changing  what both are made of
    judging    what is wrong, of a status and a time
    notices    who is to be told of it now;  telling  notifications, which tell them
    heartbeats signs of life, for a service that misses them;  sending  the thread in which all that goes out
    metrics    the same for Prometheus

The file and the judging import nothing that takes time, because a container's health check runs them twice a minute.
"""

from backupd.health.file import StatusFile
from backupd.health.values import DatabaseHealth, Status, StoreHealth

__all__ = ["DatabaseHealth", "Status", "StatusFile", "StoreHealth"]
