"""What MkDocs does for the site besides its configuration: pages from outside of docs/, links between all of them, diagrams.

Documents are written for GitHub, where links are paths in the repository. Here each path becomes the page made of it, so that the
same text works in both places; a path that no page is made of stops the build.
"""

from __future__ import annotations

import logging
import posixpath
import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pymdownx.slugs import slugify
from pymdownx.superfences import fence_code_format

log = logging.getLogger("mkdocs.hooks.lamp")

PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "EXPERIMENTS.md": "experiments.md",
    "CHANGELOG.md": "changelog.md",
    "packages/lamp-client/README.md": "lamp-client.md",
    "packages/lerobot-policy-lamp/README.md": "lerobot-policy-lamp.md",
}
"""Documents outside of docs/ -> their pages."""
DIAGRAMS = "assets/mermaid.min.js"
FENCE = re.compile(r"^ *(`{3,}|~{3,})")
LINK = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)|(?<=\]\()(?P<target>[^)\s#:]+)(?=[)\s#])", re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Sets what plain YAML cannot say: GitHub's anchors, and blocks of code that are diagrams."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slugify(case="lower")
    fence = {"name": "mermaid", "class": "mermaid", "format": fence_code_format}
    config.mdx_configs["pymdownx.superfences"] = {"custom_fences": [fence]}
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages from outside of docs/."""
    root = Path(config.config_file_path).parent
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(root / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns paths in the repository into pages, outside of code."""
    here = page.file.src_uri
    source = next((source for source, made in PAGES.items() if made == here), f"docs/{here}")

    def led(match: re.Match[str]) -> str:
        target = match["target"]
        if target is None:
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        made = PAGES.get(path) or PAGES.get(f"{path}/README.md")
        made = made or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if made is None or files.get_file_from_path(made) is None:
            log.warning("%s links to %s, of which no page is made", source, target)
            return target
        return posixpath.relpath(made, posixpath.dirname(here) or ".")

    return "".join(part if is_code else LINK.sub(led, part) for is_code, part in _parts(markdown))


def _parts(markdown: str) -> list[tuple[bool, str]]:
    """A document's blocks of code and what is between them, in order."""
    parts: list[tuple[bool, str]] = []
    lines, fence = [], None
    for line in markdown.splitlines(keepends=True):
        found = FENCE.match(line)
        lines.append(line)
        if found and fence is None:
            parts.append((False, "".join(lines[:-1])))
            lines, fence = [line], found[1]
        elif found and fence and found[1].startswith(fence):
            parts.append((True, "".join(lines)))
            lines, fence = [], None
    return [*parts, (fence is not None, "".join(lines))]


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Gives pages with diagrams the script that draws them, from the site itself."""
    if 'class="mermaid"' not in output:
        return output
    script = posixpath.relpath(DIAGRAMS, posixpath.dirname(page.file.dest_uri) or ".")
    return output.replace("</head>", f'<script src="{script}"></script></head>', 1)


def on_post_build(config: MkDocsConfig, **_: Any) -> None:
    """Copies Mermaid, which the package mermaidx carries as npm has it (requirements-docs.txt); nothing of it is run."""
    carrier = find_spec("mermaidx")
    if carrier is None or carrier.origin is None:
        raise ModuleNotFoundError("mermaidx is not installed: make setup, or pip install -r requirements-docs.txt")
    target = Path(config.site_dir) / DIAGRAMS
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(Path(carrier.origin).parent / "assets" / "mermaid.js", target)
