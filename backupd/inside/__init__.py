"""Look into a restore point without restoring it: SQLite reads its pages where they are stored, and proves each one.

pages     the pages of a restore point, by ranged reads
image     a read-only SQLite connection over such pages
"""
