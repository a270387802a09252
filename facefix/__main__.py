"""`python -m facefix` is the `facefix` command."""

from facefix.cli import main

if __name__ == "__main__":
    main()
