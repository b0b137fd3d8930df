"""`python -m raypft.cli`, the same as `raypft`."""

from raypft.cli import main

if __name__ == "__main__":
    main()
