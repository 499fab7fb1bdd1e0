"""The daemon, `backupd run`: backs up every database by its schedule, tests the snapshots, and reports.

service          start, signals, reload, end
discovery        which databases exist at this moment
timetable        when each thing is done next (the only module that knows APScheduler)
snapshot_rounds  decides for the databases of an entry which need a snapshot;  reachability  asks the stores before
work             snapshots, drills and prunes, each in its turn, and the context that they share
retries          when a failed snapshot is tried again
runs             what is in progress
requests         snapshots on request
following        follows the logs of databases;  segment_uploads  puts what was read into the stores
follow_report    puts what following comes to into the status
alert_loop       finds alarms and has them reported
http             answers requests;  listening  the sockets behind it
"""

from backupd.daemon.service import serve

__all__ = ["serve"]
