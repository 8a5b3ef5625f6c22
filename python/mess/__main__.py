"""`mess` and `python -m mess`."""

import sys


def main() -> None:
    """The command line; says what to install when the torch extra is missing."""
    try:
        from mess import cli
    except ModuleNotFoundError as error:
        sys.stderr.write(f"mess: the command line needs the torch extra: pip install 'mess[torch]' ({error})\n")
        sys.exit(2)
    cli.main()


if __name__ == "__main__":
    main()
