"""Capture: one consistent image of a live database, page by page, through SQLite's online backup API.

The walk of a capture, from the side that the rest of backupd uses to the packs in the spool:

    process         asks a capturing process for it, follows its events, and can end it at any moment
    worker          starts that process, and keeps it for the next database of the same run
    child           that process: chooses the way by the journal mode of the database
      database_files, header   examine the files before SQLite opens them
      source        WAL mode: opens the database read-only and pins one committed state for the whole copy
      rollback      rollback mode: copies in steps, and releases the lock between them
      confirmed     rollback mode under many commits: reads the file without a lock (`unlocked`), then confirms what it
                    read under a short lock, which a further process holds (`holder`)
      facts         what the pinned state says about itself
    sink            the VFS into which SQLite's backup writes: every page comes by here
    output          gives pages to the packer, and events to the parent process
    packer, table   hash each page, compare it with the base, and compress what changed into packs in the spool

`limits` has the request and the bounds, `side_files` keeps SQLite from creating or deleting files that it should not.
Nothing here knows what a store is. Of these modules only `process` imports msgspec: the child must start fast.
"""
