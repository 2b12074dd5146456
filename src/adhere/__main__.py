"""`python -m adhere` runs the command `adhere`."""

from adhere.apps.cli import main

if __name__ == "__main__":
    main()
