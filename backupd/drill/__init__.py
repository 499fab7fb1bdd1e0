"""Test restores: one snapshot is restored in full to scratch and checked, so that "restorable" is a fact.

results      what became of a drill
scratch      where the image goes for a while
packs        each pack by itself, every byte and page of it proven, as far as it can be decrypted here
image        the image out of its packs, each byte of it proven
examination  what SQLite finds in it, in a process of its own
drilling     the drill, and its record in the store
"""

from backupd.drill.drilling import drill
from backupd.drill.results import DrillResult, Outcome

__all__ = ["DrillResult", "Outcome", "drill"]
