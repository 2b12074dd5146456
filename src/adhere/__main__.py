"""The program `adhere` or `python -m adhere`. It installs signal handlers first, so that signals end it cleanly."""

from adhere.apps import _process

_process.install_handlers()


def main() -> None:
    """Run the command line and exit."""
    _process.reuse_freed_memory()
    from adhere.apps.cli import main

    main()


if __name__ == "__main__":
    main()
