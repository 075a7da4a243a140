"""How operators run over 1,500 hours: Ray, storage, ledger, shard writer and verifier. No thresholds."""

import configs  # noqa: F401 - first of all, so that nothing imported later reports or looks anything up unasked
