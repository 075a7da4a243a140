"""Runs units of work at scale: Ray actors, the ledger, locks, progress. Knows nothing of videos."""
