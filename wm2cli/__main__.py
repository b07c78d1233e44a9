"""`python -m wm2cli` is `wm2`; torchrun starts it this way."""

from wm2cli.cli import main

if __name__ == "__main__":
    main()
