"""One run on disk: prepared, computed, read, used."""
