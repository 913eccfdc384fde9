"""`python -m tightrope.app.cli` is `tightrope`."""

from tightrope.app.cli import main

if __name__ == "__main__":
    main(prog_name="tightrope")
