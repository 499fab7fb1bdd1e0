"""The operating system: files on file systems that lack features, whom files belong to, and child processes."""
