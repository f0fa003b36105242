"""README.md and the pages of docs/ as their source has them: blocks of code, commands, documents."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from sandbox.cluster import REPOSITORY

DOCS = REPOSITORY / "docs"
PAGES = {str(path.relative_to(DOCS)): path.read_text() for path in DOCS.rglob("*.md")}
PAGES["README.md"] = (REPOSITORY / "README.md").read_text()
MEASURED = {"benchmarks.md", "failover.md", "limitations.md"}


def blocks(page: str, *languages: str) -> list[str]:
    fenced = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", PAGES[page], re.MULTILINE | re.DOTALL)
    return [text for language, text in fenced if language in languages]


def command_lines() -> list[str]:
    """Every command that a page shows in a block, each on one line."""
    found = []
    for page in PAGES.keys() - MEASURED:
        for block in blocks(page, "sh", "console"):
            found += [line.strip() for line in re.sub(r"\\\n\s*", "", block).splitlines() if line.strip()]
    return sorted(set(found))


def commands_of(program: str) -> list[list[str]]:
    found = []
    for line in command_lines():
        words = shlex.split(line.split(" | ")[0])
        if Path(words[0]).name == program:
            found.append(words[1:])
    assert found, f"no page shows a command of {program}"
    return found


def documents_of(kind: str) -> list[Any]:
    """The YAML documents of this kind that pages show; those of none are "values" of the chart."""
    documents = [yaml.safe_load(block) for page in sorted(PAGES) for block in blocks(page, "yaml")]
    return [document for document in documents if document.get("kind", "values") == kind]
