"""What MkDocs calls while it builds the site: pages of examples, pages of source, smaller pages."""

import json
import logging
import pathlib
import re
from typing import Any

from gallery import EXAMPLES, RECORDED, ROOT, cells

MOST_CHARACTERS = 100_000


def script_page(script: pathlib.Path) -> str:
    """A script and its record as Markdown."""
    source = script.read_text()
    kept = json.loads((RECORDED / f"{script.stem}.json").read_text())
    parts, outputs = ["---\nhide: [toc]\n---"], iter(kept["cells"])  # room for wide code
    for cell in cells(source):
        if cell.is_prose:
            parts.append(cell.text)
            continue
        output = next(outputs)
        parts += [f"{cell.title}:"] if cell.title else []
        parts.append(f"```python\n{cell.text}\n```")
        if output["text"]:
            parts.append(f'```{{.text title="prints"}}\n{output["text"].rstrip()}\n```')
        parts += [f"![What the code above draws](recorded/{name})" for name in output["figures"]]
    parts.append(
        f"[Download the script]({script.name}){{download={script.name}}}. Recorded on"
        f" {kept['where']}; last digits differ elsewhere. `--small` runs it in seconds, as a check."
    )
    return "\n\n".join(parts) + "\n"


def on_config(config: Any) -> Any:
    """No links to edit a page where nobody has said where its repository is; called by MkDocs."""
    if not config.repo_url:
        config.edit_uri = None
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add a page for each script; called by MkDocs."""
    from mkdocs.structure.files import File

    for script in sorted(EXAMPLES.glob("*.py")):
        name = f"examples/{script.stem}.md"
        files.append(File.generated(config, name, content=script_page(script)))
    return files


def on_post_page(output: str, page: Any, config: Any) -> str:
    """A page without the indentation of its templates, a quarter of it; called by MkDocs."""
    parts = re.split(r"(<pre.*?</pre>)", output, flags=re.DOTALL)
    small = [p if p.startswith("<pre") else re.sub(r"\s*\n\s*", "\n", p) for p in parts]
    if sum(map(len, small)) > MOST_CHARACTERS:
        logging.getLogger("mkdocs").warning(
            "%s has more than %d characters of HTML: split it.", page.url, MOST_CHARACTERS
        )
    return "".join(small)


def on_post_build(config: Any) -> None:
    """Write each module of the library as a page that the API links to; called by MkDocs."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    sheets = (HtmlFormatter(style=name).get_style_defs() for name in ("default", "github-dark"))
    style = "%s @media (prefers-color-scheme: dark) { body { background: #0d1117 } %s }"
    head = (
        f'<meta name="viewport" content="width=device-width"><style>{style % tuple(sheets)}</style>'
    )
    formatter = HtmlFormatter(lineanchors="line", anchorlinenos=True)
    for module in sorted((ROOT / "bilevel").rglob("*.py")):
        name = module.relative_to(ROOT)
        code = highlight(module.read_text(), PythonLexer(), formatter)
        file = pathlib.Path(config.site_dir, "source", f"{name}.html")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(
            f'<!doctype html><html lang="en"><title>{name}</title>{head}{code}</html>\n'
        )
