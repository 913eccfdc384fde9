"""The live driver: gives the kernel time, carries its commands out, and holds the payloads."""
