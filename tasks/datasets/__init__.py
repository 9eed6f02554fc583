"""Data sets of any files: what a person names, its files and their digests, and the store that keeps them."""
