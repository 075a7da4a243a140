"""Web servers for one person on this machine."""
