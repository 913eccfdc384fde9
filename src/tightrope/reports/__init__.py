"""Pure readers of the journal: where the time of a run went, and how many runs met their promise."""
