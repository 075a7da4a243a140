"""The whole loop on a puppet world, and the page that shows it."""
