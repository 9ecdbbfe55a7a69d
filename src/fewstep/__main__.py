"""``python -m fewstep``: the command line, as torchrun starts it."""

from fewstep.cli import main

if __name__ == "__main__":
    main()
