"""`python -m ingest.simulator`."""

from ingest.simulator.command import simulate

simulate()
