"""The command `podlink`, also reached as `kubectl podlink`.

Exit codes: 0, 1 for a failure, 2 for a command, flag or environment variable that cannot be used.
"""

import asyncio
import errno
import io
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from podlink import __version__, app, logs, release, status
from podlink.bench.figures import CONTENDERS
from podlink.bench.report import Settings
from podlink.bench.run import Outputs
from podlink.bench.run import bench as run_bench
from podlink.cluster.kubeconfig import ClusterAccessError
from podlink.domain.errors import InvalidArgument, PodLinkError
from podlink.domain.workloads import POD_INDEX_LABEL
from podlink.extras import ExtraMissing
from podlink.redis_settings import RedisAccess, RedisSettings
from podlink.store.aio.executor import StatefulExecutor
from podlink.tracing import TracingUnavailable

F = TypeVar("F", bound=Callable[..., Any])

_OBJECT_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\Z")
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z")
_FILE = click.Path(dir_okay=False, path_type=Path)
_USAGE = 2
_INTERRUPTED = 130
_LAST_STANDARD_STREAM = 2


def _data_directory() -> Path | None:
    try:
        return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "podlink"
    except RuntimeError:
        # The user of a container need have neither HOME nor an entry in /etc/passwd.
        return None


def _redis_url(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    if value is None:
        if "PODLINK_REDIS_URL" in os.environ:
            raise click.BadParameter("PODLINK_REDIS_URL is empty: set it to a URL, or unset it for an embedded Valkey")
        return None
    try:
        # Nothing is connected here: the executor knows which URLs it takes.
        StatefulExecutor.from_url(value)
    except InvalidArgument as error:
        raise click.BadParameter(str(error)) from error
    return value


def _namespaces(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        _namespace(context, option, value)
    return tuple(dict.fromkeys(values))


def _namespace(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    if value is not None and not _NAMESPACE.match(value):
        raise click.BadParameter(
            f"{value!r} is no namespace name: use lower-case letters, digits and '-', at most 63 characters"
        )
    return value


def _selector(context: click.Context, option: click.Parameter, value: str) -> str:
    defaulted = context.get_parameter_source(str(option.name)) is ParameterSource.DEFAULT
    # Click takes an empty variable for none, and here it says something.
    return "" if defaulted and os.environ.get(str(option.envvar)) == "" else value


def _lease_name(_: click.Context, __: click.Parameter, value: str) -> str:
    if not _OBJECT_NAME.match(value):
        raise click.BadParameter(
            f"{value!r} is no name of an object: use lower-case letters, digits, '-' and '.', at most 253 characters"
        )
    return value


def _file_option(flag: str, what: str) -> Callable[[F], F]:
    variable = f"PODLINK_{flag[2:].replace('-', '_').upper()}"
    return click.option(flag, envvar=variable, type=_FILE, show_envvar=True, help=f"File that {what}.")


def _number(_: click.Context, __: click.Parameter, value: float) -> float:
    # Neither below nor above any bound, it is in every range.
    if math.isnan(value):
        raise click.BadParameter("nan is no number: give one, such as 1")
    return value


def _given(redis_url: str | None, what: str) -> str:
    if redis_url is None:
        raise click.UsageError(f"give --redis-url or set PODLINK_REDIS_URL: {what}")
    return redis_url


redis_option = click.option(
    "--redis-url",
    envvar="PODLINK_REDIS_URL",
    callback=_redis_url,
    show_envvar=True,
    help="redis://[user:password@]host:port/db, redis+sentinel://host:port,host:port/service,"
    " or redis+cluster://host:port,host:port; rediss, rediss+sentinel, rediss+cluster for TLS.",
)


def namespace_option(what: str) -> Callable[[F], F]:
    """The namespaces that a command is about."""
    return click.option(
        "--namespace",
        "-n",
        "namespaces",
        multiple=True,
        metavar="NS",
        envvar="PODLINK_NAMESPACE",
        callback=_namespaces,
        show_envvar=True,
        help=what,
    )


def redis_options(command: F) -> F:
    """All that says where a Redis is and how to log in."""
    options = (
        redis_option,
        _file_option("--redis-url-file", "holds the URL"),
        click.option(
            "--redis-username",
            envvar="PODLINK_REDIS_USERNAME",
            show_envvar=True,
            help="User, where the URL names none.",
        ),
        _file_option("--redis-password-file", "holds the password, where the URL has none"),
        _file_option("--redis-ca-file", "has the CA certificate of a Redis with TLS"),
        _file_option("--redis-cert-file", "has the client certificate for a Redis that asks for one"),
        _file_option("--redis-key-file", "has the key of the client certificate"),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="podlink")
def cli() -> None:
    """Sticky links from users to the pods of stateful services, kept in Redis."""


@cli.command()
@redis_options
@namespace_option("Only this namespace; may be repeated. Default: all.")
@click.option(
    "--pod-selector",
    envvar="PODLINK_POD_SELECTOR",
    default=POD_INDEX_LABEL,
    callback=_selector,
    show_default=True,
    show_envvar=True,
    help="Label selector of the pods to watch, applied by the API server. Empty: all pods.",
)
@click.option(
    "--resync-seconds",
    envvar="PODLINK_RESYNC_SECONDS",
    type=click.IntRange(min=1, max=86400),
    default=300,
    show_default=True,
    show_envvar=True,
    help="How often the cluster is compared with Redis.",
)
@click.option(
    "--recount-seconds",
    envvar="PODLINK_RECOUNT_SECONDS",
    type=click.IntRange(min=0, max=604800),
    default=3600,
    show_default=True,
    show_envvar=True,
    help="How long after one recount of the pods' loads the next begins. 0: never.",
)
@click.option(
    "--http-port",
    envvar="PODLINK_HTTP_PORT",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    show_envvar=True,
    help="Port of /metrics, /healthz and /readyz; 0 takes any free one and logs it.",
)
@click.option(
    "--data-dir",
    envvar="PODLINK_DATA_DIR",
    type=click.Path(file_okay=False, path_type=Path),
    default=_data_directory,
    show_default="~/.local/share/podlink",
    show_envvar=True,
    help="Where the embedded Valkey keeps its data, when no Redis is named.",
)
@click.option(
    "--leader-elect/--no-leader-elect",
    envvar="PODLINK_LEADER_ELECT",
    default=False,
    show_default=True,
    show_envvar=True,
    help="Work only while holding a Lease, so that several operators may stand by for each other.",
)
@click.option(
    "--lease-name",
    envvar="PODLINK_LEASE_NAME",
    default="podlink",
    callback=_lease_name,
    show_default=True,
    show_envvar=True,
    help="Name of the Lease.",
)
@click.option(
    "--lease-namespace",
    envvar="PODLINK_LEASE_NAMESPACE",
    callback=_namespace,
    show_default="the pod's own",
    show_envvar=True,
    help="Namespace of the Lease.",
)
@click.option(
    "--tracing/--no-tracing",
    envvar="PODLINK_TRACING",
    default=False,
    show_default=True,
    show_envvar=True,
    help="Export OpenTelemetry spans by OTLP/HTTP; the standard OTEL_... variables say where to.",
)
@click.option(
    "--log-format",
    envvar="PODLINK_LOG_FORMAT",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    show_envvar=True,
)
@click.option(
    "--log-level",
    envvar="PODLINK_LOG_LEVEL",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    show_envvar=True,
    help="Of PodLink's own messages; debug tells of every call to Redis.",
)
def run(
    redis_url: str | None,
    namespaces: tuple[str, ...],
    pod_selector: str,
    resync_seconds: int,
    recount_seconds: int,
    http_port: int,
    data_dir: Path | None,
    leader_elect: bool,
    lease_name: str,
    lease_namespace: str | None,
    tracing: bool,
    log_format: Any,
    log_level: str,
    **redis: Any,
) -> None:
    """Run the operator, in a pod or from a kubeconfig, until SIGTERM or Ctrl-C.

    Files that hold parts of the Redis settings may be those of a mounted Secret: one that is missing is awaited, and
    when URL or password change, the operator ends, to be started anew.
    """
    logs.configure(log_format, log_level)
    config = app.Config(
        redis=_redis_settings(redis_url, redis),
        data_directory=data_dir,
        namespaces=namespaces,
        pod_selector=pod_selector,
        resync_seconds=resync_seconds,
        recount_seconds=recount_seconds,
        http_port=http_port,
        lease=(lease_namespace, lease_name) if leader_elect else None,
        tracing=tracing,
    )
    asyncio.run(app.run(config))


def _redis_settings(url: str | None, others: Mapping[str, Any]) -> RedisSettings:
    settings = RedisSettings(url=url, **{name.removeprefix("redis_"): value for name, value in others.items()})
    if settings.url and settings.url_file:
        raise click.UsageError("give --redis-url or --redis-url-file, not both")
    if settings.embedded:
        for name, value in others.items():
            if value is not None:
                flag = f"--{name.replace('_', '-')}"
                raise click.UsageError(
                    f"{flag} is about a Redis, and none is named: give --redis-url or --redis-url-file"
                )
    return settings


@cli.command("status")
@redis_options
@namespace_option("Only this namespace; may be repeated. Default: all.")
def show_status(redis_url: str | None, namespaces: tuple[str, ...], **redis: Any) -> None:
    """Show services, pods and PodLinks as Redis and the cluster have them.

    Into a pipe, a line for each: of a service its workload's state, and of each pod id its state and, in brackets, the
    number of its links, such as 0=Ready(2).

    Without a cluster it shows what Redis has. The exit code is 1 if something could not be read; the rest is shown.
    """
    settings = _redis_settings(redis_url, redis)
    if settings.embedded:
        raise click.UsageError("give --redis-url or --redis-url-file: the Redis that the operator writes to")
    if not asyncio.run(status.show(RedisAccess(settings).read(), namespaces)):
        raise click.exceptions.Exit(1)


@cli.command("release")
@redis_options
@namespace_option("The PodLinks of this namespace; may be repeated.")
@click.option("--all-namespaces", "-A", "everywhere", is_flag=True, help="The PodLinks of all namespaces.")
@click.option("--keep-links", is_flag=True, help="Remove the finalizer only. The links stay in Redis.")
@click.option("--dry-run", is_flag=True, help="Only print what would be released.")
@click.option("--force", is_flag=True, help="Release also where a running operator serves the namespace.")
def release_podlinks(
    redis_url: str | None,
    namespaces: tuple[str, ...],
    everywhere: bool,
    keep_links: bool,
    dry_run: bool,
    force: bool,
    **redis: Any,
) -> None:
    """Release PodLinks that no operator serves any more.

    Each PodLink with the finalizer podlink.io/release loses its link in Redis, if the link is still its own, and then
    the finalizer. After that it can be deleted, and so can its namespace. Needs the right to list and patch podlinks.

    While an operator serves the namespace, delete the PodLinks with kubectl instead. The command looks for such an
    operator by its Lease, which one without --leader-elect does not have.
    """
    if everywhere == bool(namespaces):
        raise click.UsageError("give either --namespace or --all-namespaces")
    settings = _redis_settings(redis_url, redis)
    if settings.embedded != keep_links:
        raise click.UsageError(
            "give --redis-url or --redis-url-file, the Redis that the operator wrote to, or else --keep-links"
        )
    target = None if keep_links else RedisAccess(settings).read()
    request = release.Request(namespaces=namespaces, redis=target, dry_run=dry_run, force=force)
    asyncio.run(release.release(request))


@cli.command()
@redis_option
@click.option(
    "--rounds", type=click.IntRange(1, 100), default=5, show_default=True, help="How often each is measured, in turn."
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.001, 60),
    callback=_number,
    default=1,
    show_default=True,
    help="How long each is measured a round.",
)
@click.option(
    "--links",
    type=click.IntRange(1000, 10_000_000),
    default=100_000,
    show_default=True,
    help="How many are there meanwhile.",
)
@click.option(
    "--memory-links",
    type=click.IntRange(1000, 10_000_000),
    default=100_000,
    show_default=True,
    help="How many the memory of the server is measured with.",
)
@click.option("--only", multiple=True, type=click.Choice(CONTENDERS), help="Measure only this; may be repeated.")
@click.option("--json", "json_file", type=_FILE, help="Write the figures of all rounds to this file.")
@click.option("--chart", "chart_file", type=_FILE, help="Write a chart, SVG, to this file.")
@click.option(
    "--docs",
    "docs_directory",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Write benchmarks.md, bench.svg and bench.json to this directory.",
)
def bench(
    redis_url: str | None,
    rounds: int,
    seconds: float,
    links: int,
    memory_links: int,
    only: tuple[str, ...],
    json_file: Path | None,
    chart_file: Path | None,
    docs_directory: Path | None,
) -> None:
    """Measure PodLink on a Redis, beside what one would use instead and beside the limit.

    It loads the server as much as it can for some minutes. Everything is written under a namespace of its own and
    removed at the end, also after Ctrl-C; other keys and all settings are left alone.
    """
    redis_url = _given(redis_url, "the Redis to measure")
    settings = Settings(rounds=rounds, seconds=seconds, links=links, memory_links=memory_links)
    run_bench(redis_url, settings, only, Outputs(json_file, chart_file, docs_directory))


def main() -> None:
    """Run the command line; every failure that a user can mend is one sentence."""
    _prepare_streams()
    try:
        code = _run()
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        if error.filename is not None:
            raise  # it is about a file, not about our output
        code = _give_up_output(error)
    sys.exit(code)


def _run() -> int:
    """Run the command line; return the exit code."""
    try:
        # What click returns is the code of an Exit, or what a command returned: nothing.
        return cli(standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _INTERRUPTED
    except (app.SettingError, ClusterAccessError, ExtraMissing, InvalidArgument, TracingUnavailable) as error:
        click.echo(f"Error: {error}", err=True)
        return _USAGE
    except PodLinkError as error:
        click.echo(f"Error: {error}", err=True)
        return 1


def _prepare_streams() -> None:
    """Let no character that the terminal does not know, and no stream that is closed, end in a traceback."""
    # A closed stream is None. Its number would be the next socket's, which whoever writes there would hit.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _LAST_STANDARD_STREAM:
        pass
    os.close(descriptor)
    if sys.stdout is None:
        sys.stdout = _ClosedOutput()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class _ClosedOutput(io.StringIO):
    """Standard output that the caller closed: what is written there is lost, and that is an error."""

    def write(self, _: str) -> int:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))


def _give_up_output(error: OSError) -> int:
    """Say that the output is lost; return the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Else the interpreter tries to write the rest at its end, and complains.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if not isinstance(error, BrokenPipeError):  # that reader has read enough, as `head` does
        click.echo(f"Error: standard output cannot be written: {error.strerror}", err=True)
    return 1
