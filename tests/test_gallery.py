"""Every example of the gallery runs, at a small size and as a user would start it."""

import json
import os
import subprocess
import sys

import pytest
from test_docs import ROOT

EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))
sys.path.insert(0, str(ROOT / "docs"))
import gallery  # noqa: E402


@pytest.mark.slow
@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_runs(script):
    # With XLA's own flags, as people run them: without optimisations it makes NaN of a
    # hypergradient inside a scan, here of the choice of classes.
    environment = os.environ | {"MPLBACKEND": "agg", "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, script, "--small"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "nan" not in done.stdout.lower().split()


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_its_page_shows_what_it_printed(script):
    source = script.read_text()
    kept = json.loads((gallery.RECORDED / f"{script.stem}.json").read_text())
    assert kept["source"] == gallery.digest(source), (
        f"record it again: python docs/gallery.py {script.relative_to(ROOT)}"
    )
    for name in (name for cell in kept["cells"] for name in cell["figures"]):
        assert (gallery.RECORDED / name).exists()
    assert len(source.splitlines()) <= 120
    assert gallery.cells(source)[-1].text.startswith("## What can go wrong")


def test_cells_lose_no_line():
    source = "# %% [markdown]\n# # A title\n#\n# Prose.\n\n# %%\na = 1\n\n# %% More\nb = a + 1\n"
    prose, first, second = gallery.cells(source)
    assert prose == gallery.Cell(True, "# A title\n\nProse.", 1, "")
    assert first == gallery.Cell(False, "a = 1", 6, "")
    assert second == gallery.Cell(False, "b = a + 1", 9, "More")
    assert gallery.digest(source) == gallery.digest(source.replace("Prose", "Other prose"))
    assert gallery.digest(source) != gallery.digest(source.replace("a + 1", "a + 2"))
