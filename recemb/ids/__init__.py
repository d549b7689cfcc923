"""Raw values to ids: vocabularies, hashing, statistics."""
