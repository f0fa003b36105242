"""The command `podlink`, which is also `kubectl podlink` and `python -m podlink`."""

import sys

from podlink.extras import ExtraMissing, needs


def main() -> None:
    """Run the command; without the extra `operator`, say how to install it, and exit with 2."""
    try:
        with needs("operator", "the command podlink"):
            from podlink import cli  # noqa: PLC0415 - with the extra only
    except ExtraMissing as error:
        print(f"Error: {error}", file=sys.stderr)  # noqa: T201 - click is missing
        sys.exit(2)
    cli.main()


if __name__ == "__main__":
    main()
