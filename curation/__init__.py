"""What a good clip is: operators, scores, decisions, reports. Pure functions; no Ray, no storage engine."""

import configs  # noqa: F401 - first of all, so that nothing imported later reports or looks anything up unasked
