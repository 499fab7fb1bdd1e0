"""The live database as a place to restore to: what it contains, who uses it, and how its content is replaced.

    contents        what a database contains, for the decision to restore, and which processes use it
    destination     a connection that replaces the content, through SQLite's online backup API
    intent          what a restore is about to do, so that the next command can clean up after a kill
    files           what a restore keeps beside the database while it works, and another file in the database's place
    soundness       whether SQLite accepts a restored image, and what it finds in it

Only this package and `capture` import apsw.
"""
