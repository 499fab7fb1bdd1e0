"""What backupd costs, and what other ways to back up cost in the same run: `make bench`. Figures, not a test.

rows          everything that is measured: one value a row, with its unit, what it is compared with, and its target
scene         where a scenario works, and what it has measured; `measuring` runs commands and reads /proc
snapshots, kept, tenants, idle, live, locks, following, segments, peers
              the scenarios: they prepare, measure in turn, and record samples of named pieces of work
waits, commits
              applications that some of them run beside backupd
tools         backupd and the others as command lines
results       figures of a run with the machine, as JSON; `machine` describes it
comparing     what got worse between two results
report, chart, pages
              tables, a picture, and both in the documentation
"""
