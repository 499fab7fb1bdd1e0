"""Faults, on purpose: everything that can go wrong does, and every snapshot has to restore or to be reported."""
