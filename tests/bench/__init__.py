"""What backupd costs, beside the usual method in the same run: `make bench`. Figures, not a test."""
