"""The site's hook: pages that are made of the code and of files outside docs/ when the site is
built, so that none of them can go stale.

Named in mkdocs.yml; MkDocs calls the `on_...` functions.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).parent))  # MkDocs loads a hook by its path alone

from command_pages import commands_page  # noqa: E402
from python_pages import python_pages  # noqa: E402
from settings_pages import settings_page  # noqa: E402

OUTSIDE = {"README.md": "readme.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "rules.md"}
"""Files of the repository's root that are pages of the site."""
LINK = re.compile(r"(\]\()([^)#\s]+)(#[^)\s]*)?(\))")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Pages that mkdocs.yml does not place are guides, and stand with these."""
    placed = set(re.findall(r"[\w/.-]+\.md", str(config.nav)))
    found = sorted(path.name for path in Path(config.docs_dir).glob("*.md"))
    guides = next(one["How to"] for one in config.nav if "How to" in one)
    guides += [name for name in found if name not in placed]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here."""
    for page, text in generated().items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_context(context: dict[str, Any], **_: Any) -> dict[str, Any]:
    """Nobody edits a made page: no such button."""
    context["page"].edit_url = None
    return context


def on_post_page(output: str, **_: Any) -> str:
    """The theme's search is a dialogue without a name; those who hear the page need one."""
    return output.replace('role="dialog"', 'role="dialog" aria-label="Search"')


def generated() -> dict[str, str]:
    """Page -> its Markdown."""
    pages = {
        "reference/commands.md": commands_page(),
        "reference/settings.md": settings_page(),
        "citation.md": _citation((ROOT / "CITATION.cff").read_text("utf-8")),
        **python_pages(),
    }
    for source, page in OUTSIDE.items():
        pages[page] = site_links((ROOT / source).read_text("utf-8"))
    return pages


def site_links(text: str) -> str:
    """Links of a file in the repository's root, as seen from docs/. What the site does not have
    becomes its plain name."""

    def changed(found: re.Match[str]) -> str:
        before, target, anchor, after = found[1], found[2], found[3] or "", found[4]
        if "://" in target or target.startswith("mailto:"):
            return found[0]
        if target in OUTSIDE:
            return f"{before}{OUTSIDE[target]}{anchor}{after}"
        clean = posixpath.normpath(target)
        if clean.startswith("docs/"):
            return f"{before}{clean.removeprefix('docs/')}{anchor}{after}"
        return f"]{{: title='{clean}, in the repository' }}"

    return LINK.sub(changed, text)


def _citation(cff: str) -> str:
    return (
        "# Citation\n\nCite the software by `CITATION.cff` of the repository, and the paper whose "
        f"method it reconstructs.\n\n```yaml\n{cff.strip()}\n```\n"
    )
