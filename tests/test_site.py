"""The site that `make docs` builds: every document is a page, links lead to pages, and nothing is fetched from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as strictly as `make docs` does; read only."""
    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(folder)))
    return folder


def test_every_document_is_a_page(site: Path) -> None:
    own = {path.stem for path in (ROOT / "docs").glob("*.md")}
    others = {"index", "contributing", "experiments", "changelog", "lamp-client", "lerobot-policy-lamp", "404"}
    assert {path.stem for path in site.glob("*.html")} == own | others


def test_links_between_documents_lead_to_pages(site: Path) -> None:
    overview = (site / "index.html").read_text()
    assert 'href="paper.html"' in overview and 'href="lamp-client.html"' in overview
    assert 'src="images/foresight.png"' in overview and (site / "images/foresight.png").is_file()
    assert 'href="training.html#before-it-starts"' in (site / "robot.html").read_text()
    assert 'id="can-the-tasks-be-done-through-our-adapters"' in (site / "benchmarks.html").read_text()


def test_pages_need_nothing_from_elsewhere(site: Path) -> None:
    needed = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=[\"']?((?:https?:)?//[^\"' >]+)")
    canonical = "https://example.org"
    found = {link for path in site.rglob("*.html") for link in needed.findall(path.read_text())}
    styles = {path.name for path in site.rglob("*.css") if re.search(r"url\([\"']?(?:https?:)?//", path.read_text())}
    assert {link for link in found if not link.startswith(canonical)} == set() and styles == set()


def test_diagrams_are_drawn_by_the_sites_own_script(site: Path) -> None:
    assert (site / "architecture.html").read_text().count('class="mermaid"') == 2
    script = '<script src="assets/mermaid.min.js"></script>'
    assert [path.stem for path in sorted(site.glob("*.html")) if script in path.read_text()] == [
        "architecture",
        "index",
    ]
    assert (site / "assets/mermaid.min.js").stat().st_size > 1_000_000


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A project with the same hooks and two pages of its own."""
    for name in ("README", "CONTRIBUTING", "EXPERIMENTS", "CHANGELOG"):
        (tmp_path / f"{name}.md").write_text("# Title\n")
    for name in ("lamp-client", "lerobot-policy-lamp"):
        (tmp_path / "packages" / name).mkdir(parents=True)
        (tmp_path / "packages" / name / "README.md").write_text("# Title\n")
    (tmp_path / "docs").mkdir()
    (tmp_path / "src").mkdir()
    (tmp_path / "src/code.py").write_text("")
    (tmp_path / "mkdocs.yml").write_text(
        f"site_name: small\nhooks: [{ROOT}/scripts/mkdocs_hooks.py]\nuse_directory_urls: false\nplugins: []\n"
        "theme: {name: material, font: false}\nmarkdown_extensions: [tables, toc, pymdownx.superfences]\n"
        "validation: {links: {not_found: warn, anchors: warn}}\n"
    )
    return tmp_path


def test_paths_of_the_repository_become_pages_outside_of_code(small: Path) -> None:
    (small / "docs/page.md").write_text(
        "# Page\n[a](../README.md#title) [b](../packages/lamp-client) [c](page.md#a--b) `[d](../src/code.py)`\n\n## A & b\n\n"
        "```md\n[e](../src/code.py)\n```\n"
    )
    build(load_config(str(small / "mkdocs.yml"), strict=True, site_dir=str(small / "site")))
    made = (small / "site/page.html").read_text()
    assert re.findall(r'href="([^"]+)">[abc]<', made) == ["index.html#title", "lamp-client.html", "page.html#a--b"]
    assert "[d](../src/code.py)" in made and "[e](../src/code.py)" in re.sub(r"<[^>]+>", "", made)


@pytest.mark.parametrize("link", ["../src/code.py", "gone.md", "../README.md#no-such-heading"])
def test_a_link_to_what_is_no_page_stops_the_build(small: Path, link: str) -> None:
    (small / "docs/page.md").write_text(f"# Page\n[a]({link})\n")
    with pytest.raises(Abort):
        build(load_config(str(small / "mkdocs.yml"), strict=True, site_dir=str(small / "site")))
