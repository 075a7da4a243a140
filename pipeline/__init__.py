"""How operators run over 1,500 hours: Ray, storage, ledger, shard writer and verifier. No thresholds."""
