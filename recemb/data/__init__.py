"""Raw files to prepared columns on disk, and from there to batches."""
