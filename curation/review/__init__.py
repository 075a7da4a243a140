"""Reviewing flagged samples: the tables, the exchange with spreadsheets, and the page."""
