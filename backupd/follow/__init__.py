"""Follow the write-ahead logs of databases as an observer: without SQLite, without a lock, without a write.

log          one log: its commits in their order, or the reason why some may be missing
chain        the commits of one database, numbered, and cut into segments
spool        the files of one database: its segments, and how far its log was followed
child        the process that follows all databases, and `process` the side of its parent
"""
