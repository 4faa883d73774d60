"""`report.html` in a browser: readable on a phone, all pictures shown, no script, no network."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from applications.components import plots, report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
EVIL = '<script>document.title = "owned"</script><img src=x onerror="document.title=\'owned\'">'
PHONE_WIDTH = 390

# The report stands in a frame as wide as a phone; the page around it measures what became of it.
MEASURE = """<!doctype html><iframe width={width} height=800 srcdoc="{page}"></iframe>
<pre id=found></pre><script>
window.onload = () => {{
  const inside = document.querySelector("iframe").contentDocument, root = inside.documentElement;
  const images = [...inside.images];
  document.getElementById("found").textContent = JSON.stringify({{
    title: inside.title,
    scripts: inside.scripts.length,
    width: root.scrollWidth,
    shown: images.filter(image => image.complete && image.naturalWidth > 0).length,
    images: images.length,
    widest: Math.max(...images.map(image => image.getBoundingClientRect().width)),
    font: parseFloat(getComputedStyle(inside.body).fontSize),
    rows: inside.querySelectorAll("tr").length,
    headings: inside.querySelectorAll("h2").length,
  }});
}};
</script>"""


def make_page():
    wide = report.Table(["name", *map(str, range(30))], [[EVIL, *["123.4 ± 5.6"] * 30]] * 3)
    curves = plots.curves({"loss": np.exp(-np.arange(9.0))}, "step", "loss", log_y=True)
    pictures = plots.image_grid(np.zeros((3, 4, 4, 3)), ["a", "b", "c"])
    figures = report.side_by_side(report.figure(curves, EVIL), report.figure(pictures, "b"))
    sections = [
        ("Table", wide.html()),
        ("Pictures", figures),
        (EVIL, report.note(EVIL) + report.listing("x" * 500)),
    ]
    return report.page("A report & more", EVIL, EVIL, sections)


def test_a_page_needs_no_network():
    page = make_page()
    assert not re.findall(r'(?:src|href)\s*=\s*"?(?!data:)[a-z]+:', page)
    assert "@import" not in page and "url(" not in page and "<link" not in page


@pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(BROWSERS)} is installed")
def test_a_page_in_a_browser_on_a_phone(tmp_path):
    page = html.escape(make_page(), quote=True)
    (tmp_path / "measure.html").write_text(MEASURE.format(width=PHONE_WIDTH, page=page))
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=5000",
        "--dump-dom",
        (tmp_path / "measure.html").as_uri(),
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    match = re.search(r'<pre id="found">(.*?)</pre>', run.stdout)
    assert match, run.stderr[-2000:]
    found = json.loads(html.unescape(match.group(1)))
    assert found["title"] == "A report & more"  # and not "owned"
    assert found["scripts"] == 0
    assert found["images"] == found["shown"] == 2  # the escaped <img> is text
    # Wide tables scroll by themselves; the page does not.
    assert found["width"] <= PHONE_WIDTH and found["widest"] <= PHONE_WIDTH
    assert found["font"] >= 16 and (found["rows"], found["headings"]) == (4, 3)
