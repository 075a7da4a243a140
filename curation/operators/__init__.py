"""Operators: each looks at pictures or sound once and writes columns of the clips table."""
