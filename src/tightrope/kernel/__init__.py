"""The state machine: an event and the time in, commands out. No clock, no loop, no I/O."""
