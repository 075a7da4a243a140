"""Metrics and tables."""

import configs  # noqa: F401 - first of all, so that nothing imported later reports or looks anything up unasked
