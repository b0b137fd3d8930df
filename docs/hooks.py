"""What mkdocs builds beside docs/*.md: the reference, which is made from the code, and pages and plots that lie
elsewhere in the repository. Links between them are those of the repository, so that they work there as well."""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]
import reference  # noqa: E402

ELSEWHERE = {"clusters.md": "cluster/README.md", "benchmarks.md": "benchmarks/RESULTS.md"}
"""Pages of the site that lie elsewhere."""
PLOTS = "benchmarks/plots"
CODE = re.compile(r"`[^`\n]+`")
DEMO = "<!-- demo -->"
"""Where the demo's output begins in the README, and where pages show it."""
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)")


def on_files(files: Any, config: Any) -> Any:
    """Add what is made, and what lies elsewhere."""
    for name, text in reference.pages().items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    for name, source in ELSEWHERE.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text(encoding="utf-8")))
    for plot in sorted((ROOT / PLOTS).glob("*.svg")):
        files.append(File.generated(config, f"plots/{plot.name}", content=plot.read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """The README's demo where a page asks for it; links between files of the repository as those of the site; bars in
    code, which GitHub's tables want escaped, plain."""
    here = page.file.src_uri
    lies = posixpath.dirname(ELSEWHERE.get(here, f"docs/{here}"))
    places = {source: name for name, source in ELSEWHERE.items()}

    def there(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(lies, link[1]))
        site = places.get(target, re.sub(f"^{PLOTS}/", "plots/", target).removeprefix("docs/"))
        return posixpath.relpath(site, posixpath.dirname(here) or ".")

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    begin, end = text.index(DEMO), text.index("<!-- /demo -->")
    markdown = markdown.replace(DEMO, text[begin + len(DEMO) : end])
    markdown = CODE.sub(lambda code: code[0].replace("\\|", "|"), markdown)
    return LINK.sub(there, markdown)
