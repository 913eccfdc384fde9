"""The virtual driver: the same kernel in virtual time, over engines that are modelled step by step."""
