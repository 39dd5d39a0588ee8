"""What mkdocs.yml cannot say: the list of hosts, and links that leave docs/."""

import re
from pathlib import Path

LINK = re.compile(r"\[([^\]]*)\]\((\.\./[^)#]*)[^)]*\)")


def on_config(config):
    """Every page of docs/hosts/ stands in the navigation, so that a new one needs no entry."""
    docs = Path(config.docs_dir)
    pages = [str(path.relative_to(docs)) for path in sorted((docs / "hosts").glob("*.md"))]
    for entry in config.nav:
        if isinstance(entry, dict) and "Hosts" in entry:
            entry["Hosts"] = pages
    return config


def on_page_markdown(markdown, page, config, files):
    """A link to a file of the repository outside docs/, which works there and not on the site,
    becomes that file's name."""
    docs = Path(config.docs_dir).resolve()
    folder = Path(page.file.abs_src_path).resolve().parent

    def shown(link):
        target = (folder / link[2]).resolve()
        if target.is_relative_to(docs):
            return link[0]
        return f"{link[1]} (`{target.relative_to(docs.parent)}` in the repository)"

    return LINK.sub(shown, markdown)
