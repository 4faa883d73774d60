"""Every Python block of the README and the docs runs, in order, in one namespace a file."""

import inspect
import pathlib
import re

import jax
import pytest

import bilevel

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.parametrize(
    "page", [p for p in PAGES if blocks(p)], ids=lambda p: str(p.relative_to(ROOT))
)
def test_code_blocks_run(page, capsys):
    namespace = {"__name__": "__docs__"}
    with jax.numpy_rank_promotion("allow"):
        for number, block in enumerate(blocks(page), start=1):
            exec(compile(block, f"{page.name}, block {number}", "exec"), namespace)


def test_readme_prints_what_it_says(capsys):
    readme = ROOT / "README.md"
    with jax.numpy_rank_promotion("allow"):
        exec(blocks(readme)[0], {})
    said = re.search(r"It prints `(.*?)`", readme.read_text()).group(1)
    assert said in capsys.readouterr().out


def test_the_first_example_compiles_few_programs():
    """One for the run; the others are of making data and a state, operation by operation."""
    seen = []
    record = lambda event, duration, **_: seen.append(event)
    jax.monitoring.register_event_duration_secs_listener(record)
    jax.clear_caches()
    try:
        with jax.numpy_rank_promotion("allow"):
            exec(blocks(ROOT / "README.md")[0], {})
    finally:
        jax.monitoring.unregister_event_duration_listener(record)
    assert sum("backend_compile" in event for event in seen) <= 19


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith(("http", "mailto")):
                place = page.parent / target
                made_of = place.with_suffix(".py")  # pages of the gallery are made of scripts
                assert place.exists() or made_of.exists(), f"{page.name} links to {target}"


def test_every_public_name_has_its_place_in_the_api():
    pages = "\n".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    shown = set(re.findall(r"^::: (\S+)", pages, re.MULTILINE))
    parts = ("discrete", "linear", "projections", "proximal", "sampling", "testing", "training")
    names = {f"bilevel.{name}" for name in bilevel.__all__}
    for part in (*parts, "diagnostics", "sharding"):
        module = getattr(bilevel, part)
        if f"bilevel.{part}" not in shown:
            names |= {f"bilevel.{part}.{name}" for name in module.__all__}
    modules = {f"bilevel.{n}" for n in bilevel.__all__ if inspect.ismodule(getattr(bilevel, n))}
    twice = {"bilevel.LinearSolver"}  # it stands beside the solvers
    assert not names - shown - modules - twice
