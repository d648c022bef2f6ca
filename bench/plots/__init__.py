"""One file a figure: ``draw(rows)`` → matplotlib Figure, or None where the records hold no data for it."""
