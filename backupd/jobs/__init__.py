"""The work for one configured database, by hand or by schedule.

snapshots, prunes, checks  each leaves its outcome to later jobs and in the status file
trash                      what is removed, and brought back, by hand
configured                 the databases and stores that jobs work on, and the `JobContext` they take

The caller reports the outcome.
"""
