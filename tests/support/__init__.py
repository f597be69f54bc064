"""Makers of what tests read: small corpora and audio files, the same on every run."""
