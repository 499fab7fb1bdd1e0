"""A first configuration: find the SQLite files there are, and write a file that says what is to become of them.

search      SQLite files below a directory, by what is in them
entries     the entries of the configuration that stand for them: one for each, or a pattern for all tenants
writing     the text of the file, and its way to its place
"""
