"""The pages are built, and say what the code says: each name in its reference, each command with flags that exist."""

from __future__ import annotations

import ast
import html
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest
import yaml
from prometheus_client import generate_latest

import podlink
import podlink.sync
from deploy.chart import Right, default_values, leaves, rights_of
from deploy.monitoring import alerts
from docs.pages import MEASURED, PAGES, blocks, command_lines, commands_of, documents_of
from podlink.cli import cli
from podlink.domain.podlinks import Reason
from podlink.metrics import Metrics
from podlink.store.operations import scripts
from sandbox import binaries, redis_binaries
from sandbox.cluster import CHART, CRD, KUBECTL, REPOSITORY
from sandbox.redis_servers import RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

VALUES = set(leaves(default_values()))
EXECUTORS = {
    "podlink.StatefulExecutor": podlink.StatefulExecutor,
    "podlink.sync.StatefulExecutor": podlink.sync.StatefulExecutor,
}
URL = "redis://127.0.0.1:6379/0"


class Site:
    """The built pages."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def html(self, page: str) -> str:
        return (self.directory / page / "index.html").read_text()

    def ids(self, page: str) -> set[str]:
        return set(re.findall(r'\bid="([^"]+)"', self.html(page)))

    def text(self, page: str) -> str:
        return text_of(self.html(page))

    def code(self, page: str) -> set[str]:
        """What stands in a piece of code of its own."""
        return {text_of(code) for code in re.findall(r"<code>(.*?)</code>", self.html(page), re.DOTALL)}


def text_of(markup: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", markup))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    directory = tmp_path_factory.mktemp("site")
    build = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", directory],
        cwd=REPOSITORY,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert build.returncode == 0, build.stderr
    return Site(directory)


def public_methods(executor: type) -> dict[str, Any]:
    members = {name: getattr(executor, name) for name in dir(executor) if not name.startswith("_")}
    return {name: member for name, member in members.items() if callable(member)}


def test_pages_have_no_gaps_and_need_no_network(site: Site) -> None:
    built = list(site.directory.rglob("*.html"))
    # README.md is no page there, and 404.html is one more.
    assert len(built) == len(PAGES)
    for path in built:
        markup = path.read_text()
        assert "<!-- generated" not in markup, path
        assert re.findall(r'(?:src|<link[^>]* href)="(?:https?:)?//[^"]*"', markup) == [], path
        assert "<tbody>\n</tbody>" not in markup, path


def test_library_page_has_every_public_name(site: Site) -> None:
    assert {f"podlink.{name}" for name in podlink.__all__} <= site.ids("reference/library")


@pytest.mark.parametrize("path", EXECUTORS)
def test_library_page_has_every_method_as_it_is_called(site: Site, path: str) -> None:
    page = site.html("reference/library")
    for name, method in public_methods(EXECUTORS[path]).items():
        section = page.split(f'<h4 id="{path}.{name}"')[1].split("<h4 ")[0]
        heading, _, described = section.partition('<div class="doc-signature')
        shown = text_of(described.split("</pre>")[0])
        signature = inspect.signature(method)
        for parameter in signature.parameters.values():
            if parameter.name == "self":
                continue
            assert re.search(rf"\b{parameter.name}\b", shown), (name, parameter.name)
            if parameter.default is not inspect.Parameter.empty:
                default = json.dumps(parameter.default) if isinstance(parameter.default, str) else parameter.default
                assert re.search(rf"\b{parameter.name}: [^=]*= {default}", shown), (name, parameter.name)
        assert first_line(method) in text_of(described), name
        assert ("doc-label-async" in heading) == inspect.iscoroutinefunction(method), name
        assert "<p>Returns:" not in described, "the sections of a docstring are tables"
        assert not re.search(r"-> (Operation|Bulk)\[", shown), (name, "a method returns the result")


def first_line(method: Any) -> str:
    first = (inspect.getdoc(method) or "").splitlines()[0].replace("`", "")
    assert first, f"{method.__name__} has no docstring"
    return first


def test_podlink_page_has_every_field_message_and_reason(site: Site) -> None:
    (version,) = yaml.safe_load(CRD.read_text())["spec"]["versions"]
    schema = version["schema"]["openAPIV3Schema"]["properties"]
    code, text = site.code("reference/podlink"), site.text("reference/podlink")
    assert set(fields(schema["spec"])) | set(fields(schema["status"])) <= code
    assert {reason.value for reason in Reason} <= code
    for node in nodes(schema):
        assert node.get("description", "") in text
        for rule in node.get("x-kubernetes-validations", ()):
            assert rule["message"] in text


def fields(schema: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for name, field in schema.get("properties", {}).items():
        yield f"{path}{name}"
        yield from fields(field, f"{path}{name}.")
        yield from fields(field.get("items", {}), f"{path}{name}[].")


def nodes(schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for field in schema["spec"]["properties"], schema["status"]["properties"]:
        yield from field.values()
    yield schema["spec"] | {"description": ""}


def options() -> list[click.Option]:
    return [
        option for command in cli.commands.values() for option in command.params if isinstance(option, click.Option)
    ]


def test_command_line_page_has_every_command_flag_and_variable(site: Site) -> None:
    assert {f"podlink-{name}" for name in cli.commands} <= site.ids("reference/cli")
    code = site.code("reference/cli")
    flags = {flag for shown in code for flag in re.findall(r"(?<![\w-])--?\w[\w-]*", shown)}
    for option in options():
        assert {*option.opts, *option.secondary_opts} <= flags
        if option.envvar:
            assert option.envvar in code


def test_metrics_page_has_every_metric(site: Site) -> None:
    exposed = re.findall(r"^# TYPE (\w+) (\w+)$", generate_latest(Metrics().registry).decode(), re.MULTILINE)
    text = site.html("reference/metrics")
    for name, kind in exposed:
        assert f"<td><code>{name}</code></td>\n<td>{kind}</td>" in text


def test_values_page_has_every_value_and_what_is_said_of_it(site: Site) -> None:
    text = (CHART / "values.yaml").read_text()
    shown = site.code("reference/values")
    # What Kubernetes defines (requests of resources, say) is one value here.
    assert {path for path in VALUES if not path.startswith(("resources.", "metrics.dashboard.labels."))} <= shown
    words = " ".join(site.text("reference/values").split())
    for comment in re.findall(r"^ *# (.*)$", text, re.MULTILINE)[1:]:
        assert comment.strip() in words


@pytest.mark.parametrize("alert", alerts())
def test_operate_page_has_a_section_for_each_alert(site: Site, alert: str) -> None:
    page = site.html("operate")
    section = page.split(f'<h3 id="{alert.lower()}">')[1].split("<h")[0]
    for question in ("What it means.", "What users notice.", "What to do.", "How it clears."):
        assert question in section
    assert "podlink_" in text_of(section), "when it fires"


def test_scripts_page_has_every_header(site: Site) -> None:
    text = site.text("reference/keys-and-scripts")
    for script in scripts.ALL:
        header = script.text.split("]]")[0].removeprefix("--[[\n")
        assert script.name.lower() in site.ids("reference/keys-and-scripts")
        assert all(line.strip() in text for line in header.splitlines())


def test_pages_show_commands_of_known_programs_only() -> None:
    known = {"curl", "docker", "helm", "kubectl", "make", "podlink", "redis-cli"}
    assert {Path(shlex.split(line)[0]).name for line in command_lines()} <= known


def test_files_that_pages_name_are_there() -> None:
    named = {
        path
        for page, text in PAGES.items()
        if page not in MEASURED
        for path in re.findall(r"\b(?:deploy|crds|lua|docs|tests)/[\w./-]*\w", text)
    }
    assert [path for path in named if not (REPOSITORY / path).exists()] == []


@pytest.mark.parametrize("words", commands_of("kubectl"), ids=" ".join)
def test_kubectl_knows_the_flags(words: list[str]) -> None:
    command = [word for word in words if not word.startswith("-")]
    # `kubectl create secret generic` and `kubectl rollout status` are commands; `kubectl get pods` is one with a name.
    depth = {"create": 3, "rollout": 2}.get(command[0], 1)
    known = kubectl("options") + kubectl(*command[:depth], "--help")
    for word in words:
        if word == "--":
            break
        flag = word.split("=")[0]
        if flag.startswith("--"):
            assert re.search(rf"^\s+(-\w, )?{flag}=", known, re.MULTILINE), flag
        elif flag.startswith("-"):
            assert re.search(rf"^\s+{flag}, --", known, re.MULTILINE), flag


def kubectl(*words: str) -> str:
    return subprocess.run([KUBECTL, *words], capture_output=True, text=True, check=True).stdout


def test_values_that_helm_commands_set_are_values_of_the_chart() -> None:
    named = [word.split("=")[0] for words in commands_of("helm") for word in words if re.match(r"[\w.]+=", word)]
    assert named
    assert set(named) <= VALUES


@pytest.mark.parametrize("values", documents_of("values"), ids="-".join)
def test_values_that_pages_show_are_values_of_the_chart(values: dict[str, Any]) -> None:
    assert set(leaves(values)) <= VALUES


def test_podlink_knows_the_options() -> None:
    for name, *words in commands_of("podlink"):
        context = click.Context(cli.commands[name])
        known = {opt for option in cli.commands[name].get_params(context) for opt in (*option.opts, "--version")}
        assert {word.split("=")[0] for word in words if word.startswith("-")} <= known


def test_make_knows_the_targets() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    # PYTHON ?= ..., and $(KUBERNETES) where it is used.
    settings = {f"{name}=" for found in re.findall(r"^(\w+) \?=|\$\((\w+)\)", makefile, re.MULTILINE) for name in found}
    words = [word.partition("=") for words in commands_of("make") for word in words]
    assert {name + equals for name, equals, _ in words} <= targets | settings


def test_names_in_pages_are_names_in_the_code() -> None:
    exposed = generate_latest(Metrics().registry).decode()
    metrics = set(re.findall(r"^# TYPE (podlink_\w+)", exposed, re.MULTILINE))
    variables = {str(option.envvar) for option in options() if option.envvar}
    variables |= {binaries.KUBERNETES_VARIABLE, redis_binaries.VARIABLE}
    for page, text in PAGES.items():
        assert set(re.findall(r"\b(podlink_\w+)", text)) <= metrics, page
        assert set(re.findall(r"\b(PODLINK_\w+)", text)) <= variables, page


SAID = (
    # /readyz
    *("is not there", "is empty", "cannot be read", "Redis is unreachable", "Redis did not answer within"),
    *("Redis refused the user name or the password", "Redis cannot serve now", "failed on"),
    *("this is a node of a cluster", "starting", "not asked yet", "the first sweep has not run yet"),
    *("the watches have not started yet", "sweep failed: ", "the type PodLink is not installed in this cluster"),
    *("the watches ended: ", "cannot be used", "may not"),
    # the log
    *("Redis is available", "Redis is not available", "swept in", "is ours", "tried again in", "keeps changing"),
    *("is left out of the sweep", "recounted", "LinkDrifted", "data_loss", "redis_return"),
)


def said() -> Iterator[str]:
    """The texts in the operator's code, docstrings left out, with … for what is filled in."""
    for path in (REPOSITORY / "operator").rglob("*.py"):
        yield from texts(ast.parse(path.read_text()))


def texts(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Expr(value=ast.Constant()):
            return
        case ast.Constant(value=str(text)):
            yield re.sub(r"%[\d.]*[a-z]", "…", text)
        case ast.JoinedStr(values=parts):
            yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in parts)
        case _:
            for child in ast.iter_child_nodes(node):
                yield from texts(child)


@pytest.mark.parametrize("words", SAID)
def test_operator_says_what_the_pages_quote(words: str) -> None:
    assert words.strip() in PAGES["operate.md"]
    # At the beginning, or next to what is filled in: elsewhere the same words may be part of any sentence.
    quoted = re.compile(rf"(^|…[:;]? ?){re.escape(words)}")
    assert any(quoted.search(re.sub("…(/…)+", "…", text)) for text in said())


def test_security_page_lists_the_rights_of_the_roles() -> None:
    rows = re.findall(r"^\| `?([\w.]*)`? ?\| `([\w/]+)` \| ([\w, ]+) \|", PAGES["security.md"], re.MULTILINE)
    listed = {Right(group, resource, verb) for group, resource, verbs in rows for verb in verbs.split(", ")}
    text = (REPOSITORY / "deploy/install.yaml").read_text()
    objects = [document for document in yaml.safe_load_all(text) if document]
    bound = {binding["roleRef"]["name"] for binding in objects if binding["kind"].endswith("RoleBinding")}
    roles = [each for each in objects if each["kind"] in {"Role", "ClusterRole"} and each["metadata"]["name"] in bound]
    # Only where namespaces are listed, which the generated manifest does not do.
    assert listed - rights_of(*roles) == {Right("", "namespaces", "get")}
    assert rights_of(*roles) <= listed


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer("valkey") as running:
        yield running


def test_python_example_prints_what_it_says(server: RedisServer) -> None:
    (program,) = blocks("reference/keys-and-scripts.md", "python")
    result = subprocess.run(
        [sys.executable, "-c", program.replace(URL, server.url)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.splitlines() == re.findall(r"^print\(.*\)  # (.*)$", program, re.MULTILINE)


def test_redis_cli_examples_link_release_and_wipe(server: RedisServer) -> None:
    program = shutil.which("redis-cli")
    if program is None:
        pytest.skip("no redis-cli on PATH; `apt install redis-tools` would un-skip it")
    lines = [line for line in command_lines() if line.startswith("redis-cli")]
    link, wipe, read, release = (
        next(line for line in lines if word in line) for word in ("TrySet", "unlink", " get ", "RemoveLink")
    )
    assert {link, wipe, read, release} == set(lines)

    def run(line: str) -> list[str]:
        here = re.sub(r"\bredis-cli\b", f"{program} -p {server.port}", line)
        shell = subprocess.run(["sh", "-c", here], cwd=REPOSITORY, capture_output=True, text=True, check=True)
        return shell.stdout.split()

    assert run(link) == ["1", "1"]
    assert run(read) == ["1"]
    assert run(release) == ["1"]
    assert run(read) == []
    run(link)
    run(wipe)
    assert server.ask("DBSIZE") == 0
