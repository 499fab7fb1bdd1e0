"""Setup: find the SQLite files that there are, and write a first configuration that backs them up.

initialization   what `backupd init` does: gathers what the file must say, from options and answers
search           SQLite files below a directory, found by their content
entries          the entries of the configuration for these files: one for each, or a pattern for all tenants
writing          the text of the file, and how it is written
"""
