"""Saving, loading and resuming."""

from recemb.checkpoint.logical import OtherTablesError
from recemb.checkpoint.tables_checkpoint import load_tables, read_weights, save_tables

__all__ = ["OtherTablesError", "load_tables", "read_weights", "save_tables"]
