"""Everything that is worth measuring on a GPU, in order of value and inside a given time: `selkey bench gpu`."""
