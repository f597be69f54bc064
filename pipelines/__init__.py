"""The jobs from corpora to shards: scan, split, encode, and the report. Plain functions; Ray only schedules them."""
