"""Everything foreign, one file per foreign thing; adapters translate and decide nothing."""
