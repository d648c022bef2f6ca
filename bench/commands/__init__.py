"""One command a file; `bench/cli.py` puts them together."""
