"""The status page: values in, HTML out. It reads no file and asks no store.

values     what is known of a database, gathered by `backupd.jobs.knowledge`
html       a builder that escapes everything which is not markup already
document   a whole page: its head, style, script, and the headers that go with it
words      times and sizes as elements, and the sentence at the top
timeline   snapshots, test restores, recovery windows and holds over time
charts     sizes and durations over time
overview   all databases, the worst first
database   one database
snapshot   one snapshot, and the commands for it
report     all of them in one file
"""
