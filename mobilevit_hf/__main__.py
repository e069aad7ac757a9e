"""`python -m mobilevit_hf` is the `mobilevit` command."""

from .cli import main

if __name__ == "__main__":
    main()
