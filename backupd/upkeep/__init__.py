"""What is done for a configured database each time, by hand or by the clock, and what is remembered of it.

A snapshot into its stores, rotation after it, and test restores; each leaves its outcome to later prunes and in the
status file. How it is told is the caller's business.
"""
