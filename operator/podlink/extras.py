"""The parts of PodLink that are installed only with an extra, such as `pip install 'podlink[operator]'`."""

from collections.abc import Iterator
from contextlib import contextmanager

from podlink.domain.errors import PodLinkError


class ExtraMissing(PodLinkError):  # noqa: N818 - named for what it tells the user
    """Something needs packages that are not installed; the text says which extra to install."""


@contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """Import, inside of the `with` block, what only comes with an extra.

    Args:
        extra: name of the extra.
        what: what needs it, the beginning of the error's sentence.

    Raises:
        ExtraMissing: one of its packages is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == "podlink":
            raise  # a fault of ours, which no extra mends
        raise ExtraMissing(
            f"{what} needs the package {package}, which is not installed: pip install 'podlink[{extra}]'"
        ) from error
