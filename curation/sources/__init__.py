"""Sources as a user names them → one :class:`curation.sources.source.Source` per video."""
