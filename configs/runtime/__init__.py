"""What every process of this program shares: stopping, locks, temporary folders, output that is safe to print."""
