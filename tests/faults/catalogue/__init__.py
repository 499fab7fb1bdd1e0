"""Everything that goes wrong in a soak."""

from __future__ import annotations

from faults.catalogue import clocks, disks, processes, sources, stores, wire

FAULTS = (*processes.FAULTS, *wire.FAULTS, *disks.FAULTS, *clocks.FAULTS, *sources.FAULTS, *stores.FAULTS)
