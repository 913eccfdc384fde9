"""The composition of the product: configuration, wiring and the command line."""
