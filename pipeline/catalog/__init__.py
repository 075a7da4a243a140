"""Catalogs: made, decided again, queried, verified, relocated."""
