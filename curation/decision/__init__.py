"""Scores and thresholds → verdicts: rules, reasons, duplicates."""
