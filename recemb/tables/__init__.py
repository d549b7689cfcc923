"""Ids to vectors: table specifications, storage and the lookup engine."""
