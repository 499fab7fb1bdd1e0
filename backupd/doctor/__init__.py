"""Whether backups and restores will work here: one finding for each check, with what to do about it.

    examination     runs everything side by side, each part for so long at most
    configuration   the file, what it names, the state directory
    unlisted        SQLite files beside the databases that nobody named
    databases       judges what a process of its own (`looking`, `child`) found at each database
    stores          writes into each store, reads back, deletes; `probe` is the object that it does so with
    buckets         what a bucket says of itself;  directories: what the kernel says of a directory
    times           schedules, time zones, and whether anybody would be told
    mounts          what this host has mounted where

Nothing is changed in a database, and nothing stays in a store, but for one object where keys may only put. Imports
nothing here: the processes that look at databases have to start fast.
"""
