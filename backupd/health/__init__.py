"""Health: the state of each database in each store, kept in one file, checked for alarms, and reported.

values         what is known of each database and store
file           the status file;  codec  its JSON
recording      what each outcome changes in the status;  planning  what the daemon's plans change
recovery       up to when every commit of a followed database is stored
alarms         what is wrong, from a status and a time
notifications  which alarms each target is sent, and when
heartbeats     signs of life for a service that raises an alarm when they stop
metrics        the status for Prometheus

`file` and `alarms` import nothing that takes time, because a container's health check runs them twice a minute.
"""

from backupd.health.file import StatusFile
from backupd.health.values import DatabaseHealth, Status, StoreHealth

__all__ = ["DatabaseHealth", "Status", "StatusFile", "StoreHealth"]
