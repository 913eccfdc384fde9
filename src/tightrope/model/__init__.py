"""The vocabulary of Tightrope: frozen dataclasses and enums, standard library only."""
