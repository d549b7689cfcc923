"""Models of long behaviour sequences: search, attention, aggregation."""
