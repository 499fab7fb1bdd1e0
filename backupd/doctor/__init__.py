"""Doctor: checks whether backups and restores will work here. A finding for each check says what to do.

    examination     runs all checks concurrently, each within its time limit
    findings        the results of checks, and the words for quantities in them
    configuration   the file, the databases and stores that it names, secrets, keys, and SQLite files without an entry
    databases       one database, from the facts that a process of its own (`database_child`) prints
    following       whether a database can be followed
    stores          writes an object into a store, reads it back, lists and deletes it
    buckets         the settings of a bucket, and what put-only keys may do
    directories     what the directories of stores and state are mounted from, and their free space
    unattended      schedules, the time zone, notifications and heartbeats

Doctor changes no database and leaves nothing in a store, except one object where keys may only put. Nothing is imported
here, because the processes that inspect databases must start fast.
"""
