"""Rows of results to tables and summaries."""
