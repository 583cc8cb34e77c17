"""`python -m kresnet` is `kresnet`."""

from kresnet.cli import main

if __name__ == "__main__":
    main()
