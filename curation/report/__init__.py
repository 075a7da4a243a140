"""The report of a catalog: one page with charts."""
