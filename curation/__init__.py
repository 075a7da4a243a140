"""What a good clip is: operators, scores, decisions, reports. Pure functions; no Ray, no storage engine."""
