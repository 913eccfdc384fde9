"""How people write workflows: the Python form, the YAML form, and the texts inside them."""
