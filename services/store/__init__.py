"""The truth: files and the database."""
