"""Look into a restore point without restoring it: SQLite reads its pages where they are stored, and proves each one.

pages     the pages of a restore point, by ranged reads
live      a copy of the live database, for a comparison
image     a read-only SQLite connection over such pages
tables    columns, what identifies a row, and values as SQL
query     statements of a person, and SQLite's shell
dump      tables as SQL, CSV, JSON or a database
trees     which rowids may differ between two states, by their pages
diff      what changed between two states;  patch: the same as SQL
recover   rows that are brought back into the live database
"""
