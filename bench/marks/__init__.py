"""`selkey bench marks`: who should decide what a model of constant memory remembers."""
