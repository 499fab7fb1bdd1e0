"""The live database as a place to restore to: what is in it, who uses it, and how its content is replaced.

    contents      what a database holds, of which a person decides whether to restore
    destination   a connection that replaces the content, through SQLite's online backup API
    locks         which processes SQLite's locks show
    intent        what a restore is about to do, so that the next command can clean up after a kill
    files         what a restore keeps beside the database while it works

Beside `capture`, the only importer of apsw.
"""
