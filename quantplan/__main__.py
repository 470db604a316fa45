"""`python -m quantplan` is the same program as the console script."""

from quantplan.cli.main import main

if __name__ == "__main__":
    main()
