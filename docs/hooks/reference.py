"""Writes the reference from what it is about, each time the pages are built, so that it cannot be out of date.

Where a page says `<!-- generated: name argument -->`, the text is put that the function of that name in `_GENERATED`
makes. These functions get the text of one file, or an object, and do nothing else than write Markdown.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
import yaml
from mkdocs.exceptions import PluginError
from prometheus_client import CollectorRegistry

from podlink.cli import cli
from podlink.metrics import Metrics

_ROOT: Final = Path(__file__).parents[2]
_CHART: Final = "deploy/chart/podlink"
_GROUP: Final = object()
"""Stands for the default of a value that is a group of others."""
_MARK: Final = re.compile(r"^<!-- generated: ([\w-]+)(?: (\w+))? -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for each page, with its source."""
    return _MARK.sub(lambda mark: _generate(*filter(None, mark.groups())), markdown)


def _generate(name: str, *arguments: str) -> str:
    if name not in _GENERATED:
        raise PluginError(f"nothing is generated under the name {name!r}; there are: {', '.join(_GENERATED)}")
    return _GENERATED[name](*arguments)


def _read(path: Path) -> str:
    if not path.is_file():
        raise PluginError(f"{path.relative_to(_ROOT)} is missing, and a page of the reference is made of it")
    return path.read_text(encoding="utf-8")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; what stands in a cell is on one line, and a `|` in it is no border."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def code(text: object) -> str:
    """Text as code, whatever is in it; nothing where there is none."""
    shown = str(text)
    if not shown:
        return ""
    return f"`` {shown} ``" if "`" in shown else f"`{shown}`"


def plain(text: str) -> str:
    """Text that is no Markdown, so that it stays as it is."""
    return re.sub(r"([*_<>{}\[\]`])", r"\\\1", text).replace(r"\<", "&lt;").replace(r"\>", "&gt;")


def crd_fields(crd: str, part: str) -> str:
    """A table of the fields of `spec` or `status`."""
    (version,) = yaml.safe_load(crd)["spec"]["versions"]
    schema = version["schema"]["openAPIV3Schema"]["properties"][part]
    rows = [
        (code(path), _type(field), code(_default(field)), _bounds(field, required=required), plain(_described(field)))
        for path, field, required in _fields(schema)
    ]
    return table(("field", "type", "default", "constraints", "meaning"), rows)


def crd_messages(crd: str) -> str:
    """A table of what the API server answers to a PodLink that breaks a rule of its schema."""
    (version,) = yaml.safe_load(crd)["spec"]["versions"]
    schema = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    nodes = [("spec", schema), *((path, field) for path, field, _ in _fields(schema, "spec"))]
    rows = [
        (code(path + rule.get("fieldPath", "")), plain(rule["message"]))
        for path, node in nodes
        for rule in node.get("x-kubernetes-validations", ())
    ]
    return table(("field", "message"), rows)


def crd_columns(crd: str) -> str:
    """A table of what `kubectl get` shows."""
    (version,) = yaml.safe_load(crd)["spec"]["versions"]
    rows = [
        (column["name"], code(column["jsonPath"]), "with `-o wide`" if column.get("priority") else "")
        for column in version["additionalPrinterColumns"]
    ]
    return table(("column", "shows", ""), rows)


def _fields(schema: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any], bool]]:
    """Each field below: its path, its schema, and whether it must be there."""
    for name, field in schema.get("properties", {}).items():
        here = f"{path}.{name}" if path else name
        yield here, field, name in schema.get("required", ())
        if "properties" in field:
            yield from _fields(field, here)
        elif "properties" in field.get("items", {}):
            yield from _fields(field["items"], f"{here}[]")


def _type(field: Mapping[str, Any]) -> str:
    kind = field.get("type", "")
    words = " or ".join(kind) if isinstance(kind, list) else str(kind)
    return f"{words} ({field['format']})" if "format" in field else words


def _default(field: Mapping[str, Any]) -> str:
    return json.dumps(field["default"]).strip('"') if "default" in field else ""


def _described(field: Mapping[str, Any]) -> str:
    return str(field.get("description", "")).strip()


def _bounds(field: Mapping[str, Any], *, required: bool = False) -> str:
    """What the schema allows."""
    told = ["required"] if required else []
    if "enum" in field:
        told.append(" ".join(code(choice) if choice != "" else '`""`' for choice in field["enum"]))
    names = {
        "minimum": "at least",
        "maximum": "at most",
        "minLength": "length at least",
        "maxLength": "length at most",
        "minItems": "items at least",
    }
    told += [f"{words} {code(field[name])}" for name, words in names.items() if name in field]
    if any("oldSelf" in rule["rule"] for rule in field.get("x-kubernetes-validations", ())):
        told.append("immutable")
    return ", ".join(told)


def readme_table(readme: str, head: str) -> str:
    """A table of the README, by the first cell of its head."""
    found = re.search(rf"^\| {re.escape(head)} \|.*(?:\n\|.*)*", readme, re.MULTILINE)
    if found is None:
        raise PluginError(f"README.md has no table whose first column is headed {head!r}")
    return found[0]


def acl(readme: str) -> str:
    """The commands that make a user for gateways and one for the operator, by what the README says of their rights."""
    listed = re.search(r"^```acl\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    further = re.search(r"for the operator\s+`([^`]+)`", readme)
    if listed is None or further is None:
        raise PluginError("README.md does not list the rights of an ACL user: a block `acl`, and `…` for the operator")
    rights = " ".join(listed[1].split())
    return "\n\n".join(
        f"For {who}:\n\n```text\nACL SETUSER {name} on >PASSWORD {given}\n```"
        for who, name, given in (
            ("gateways", "gateway", rights),
            ("the operator", "podlink", f"{rights} {further[1]}"),
        )
    )


def scripts(texts: Mapping[str, str]) -> str:
    """A section for each Lua script: the header of its file."""
    return "\n\n".join(f"### {name}\n\n```text\n{_header(name, text)}\n```" for name, text in texts.items())


def _header(name: str, text: str) -> str:
    found = re.match(r"--\[\[\n(.*?)\n\]\]\n", text, re.DOTALL)
    if found is None:
        raise PluginError(f"lua/{name}.lua does not begin with a header")
    return "\n".join(line.removeprefix("  ") for line in found[1].splitlines())


def commands(group: click.Group) -> str:
    """A section for each command: what it does, and its options."""
    root = click.Context(group, info_name="podlink")
    sections = []
    for name, command in group.commands.items():
        context = click.Context(command, info_name=name, parent=root)
        usage = command.get_usage(context).removeprefix("Usage: ")
        options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
        sections.append(
            f"## podlink {name}\n\n{plain(' '.join((command.help or '').split()))}\n\n```text\n{usage}\n```\n\n"
            + table(
                ("option", "environment variable", "default", "meaning"),
                [_option(option, context) for option in options],
            )
        )
    return "\n\n".join(sections)


def _option(option: click.Option, context: click.Context) -> Sequence[str]:
    extra = option.get_help_extra(context)
    flags = "/".join([*option.opts, *option.secondary_opts])
    default = str(extra.get("default", ""))
    return (
        code(f"{flags} {_value(option, context)}".strip()),
        " ".join(code(name) for name in extra.get("envvars", ())),
        code(default[1:-1] if isinstance(option.show_default, str) else default),
        f"{plain(option.help or '')} {_allowed(option.type)}",
    )


def _value(option: click.Option, context: click.Context) -> str:
    if option.is_flag:
        return ""
    if isinstance(option.type, click.IntRange | click.FloatRange):
        return "N"
    return option.metavar or ("WORD" if isinstance(option.type, click.Choice) else option.make_metavar(context))


def _allowed(kind: click.ParamType[Any]) -> str:
    if isinstance(kind, click.Choice):
        return f"One of {', '.join(code(choice) for choice in kind.choices)}."
    if isinstance(kind, click.IntRange | click.FloatRange):
        return f"From {kind.min:,} to {kind.max:,}."
    return ""


def metrics(registry: CollectorRegistry) -> str:
    """A table of what `/metrics` shows."""
    # prometheus_client has no public way to the label names of a metric that has no value yet.
    collectors = registry._names_to_collectors  # noqa: SLF001
    rows = []
    for family in sorted(registry.collect(), key=lambda family: family.name):
        name = family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
        kind = "gauge" if family.type == "info" else family.type
        declared = getattr(collectors.get(family.name), "_labelnames", ())
        seen = {label for sample in family.samples for label in sample.labels} - {"le", "quantile"}
        labels = [*declared, *sorted(seen - {*declared})]
        rows.append((code(name), kind, " ".join(code(label) for label in labels), plain(family.documentation)))
    return table(("name", "type", "labels", "meaning"), rows)


def values(values_text: str, schema_text: str) -> str:
    """A table of the chart's values: name, default, what the schema allows, and meaning."""
    told = _comments(values_text)
    rows = []
    for path, default, field in _values(yaml.safe_load(values_text), json.loads(schema_text)):
        allowed = ", ".join(part for part in (_type(field), _bounds(field)) if part)
        shown = "" if default is _GROUP else code(json.dumps(default, ensure_ascii=False))
        meaning = plain(told.get(path) or _described(field))
        if shown or meaning:
            rows.append((code(path), shown, allowed if shown else "", meaning))
    return table(("value", "default", "type", "meaning"), rows)


def _values(
    given: Mapping[str, Any], schema: Mapping[str, Any], path: str = ""
) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Each value, groups of others too: its path, its default and its schema."""
    for name, value in given.items():
        here, field = f"{path}.{name}" if path else name, schema.get("properties", {}).get(name, {})
        if isinstance(value, Mapping) and value and "properties" in field:
            yield here, _GROUP, field
            yield from _values(value, field, here)
        else:
            yield here, value, field


def _comments(text: str) -> dict[str, str]:
    """The comment above each value, or behind it, by the value's path."""
    told: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    above: list[str] = []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("#"):
            above.append(stripped.lstrip("#- "))
            continue
        found = re.match(r"( *)([\w./-]+):(?:.*?\s#\s*(.*))?", line)
        if found:
            indent = len(found[1])
            path = [*(entry for entry in path if entry[0] < indent), (indent, found[2])]
            told[".".join(name for _, name in path)] = " ".join([*above, found[3] or ""]).strip()
        above = []
    return told


def alerts(rules: str) -> str:
    """A table of the alerts, each linked to its section of the page."""
    rows = [
        (f"[{rule['alert']}](#{rule['alert'].lower()})", rule["labels"]["severity"], rule.get("for", "at once"))
        for rule in _rules(rules)
    ]
    return table(("alert", "severity", "fires after"), rows)


def alert(rules: str, name: str) -> str:
    """When one alert fires."""
    (rule,) = [rule for rule in _rules(rules) if rule["alert"] == name]
    expression = "\n".join(line for line in rule["expr"].splitlines() if not line.strip().startswith("#"))
    return f"Fires when this is so for {rule.get('for', 'a moment')}:\n\n```promql\n{expression}\n```"


def _rules(rules: str) -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(rules)["groups"] for rule in group["rules"]]


def _of(write: Callable[..., str], *paths: str) -> Callable[..., str]:
    """The function on the text of these files."""
    return lambda *arguments: write(*(_read(_ROOT / path) for path in paths), *arguments)


def changelog(text: str) -> str:
    """The changelog without its title, which the page has."""
    return text.partition("\n")[2]


_GENERATED: Final[Mapping[str, Callable[..., str]]] = {
    "acl": _of(acl, "README.md"),
    "alert": _of(alert, f"{_CHART}/files/alerts.yaml"),
    "alerts": _of(alerts, f"{_CHART}/files/alerts.yaml"),
    "changelog": _of(changelog, "CHANGELOG.md"),
    "commands": lambda: commands(cli),
    "crd-columns": _of(crd_columns, "crds/podlinks.yaml"),
    "crd-fields": _of(crd_fields, "crds/podlinks.yaml"),
    "crd-messages": _of(crd_messages, "crds/podlinks.yaml"),
    "metrics": lambda: metrics(Metrics().registry),
    "readme-table": _of(readme_table, "README.md"),
    "scripts": lambda: scripts({path.stem: _read(path) for path in sorted((_ROOT / "lua").glob("*.lua"))}),
    "values": _of(values, f"{_CHART}/values.yaml", f"{_CHART}/values.schema.json"),
}
