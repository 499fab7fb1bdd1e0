"""Capture: one consistent image of a live database through SQLite's online backup API, page by page.

`process` is the side that the rest of backupd uses; it runs `child` as a process of its own, which wires together

    source   opens the database read-only, pins one committed state, and says what is in it
    sink     the VFS into which SQLite's backup writes the pages of that state
    packer   hashes each page, compares it with the base, and compresses what changed into packs in the spool

Nothing here knows what a store is. The child imports neither numpy nor pydantic: it has to start fast.
"""
