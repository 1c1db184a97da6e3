"""Pages in a real browser: Chromium, without a window."""

from __future__ import annotations

import html
import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
#: Looks at all words of a page, everything unfolded.
_PROBE = """
<script>
addEventListener("load", () => {
  for (const one of document.querySelectorAll("details")) one.open = true;
  const READABLE = 4.5;  // WCAG 2.1, level AA: contrast of text to what is behind it
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
  const colour = (text) => {  // whatever the notation: as red, green, blue (0..255) and alpha
    if (/^rgba?\\(/.test(text)) { const [r, g, b, a = 1] = numbers(text); return [r, g, b, a]; }
    const [r, g, b, a = 1] = numbers(text.replace(/color\\(srgb/, ""));
    return [r * 255, g * 255, b * 255, a];
  };
  const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3]));
  const light = (rgb) => {
    const [r, g, b] = rgb.map(v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const behind = (node) => {
    if (!node) return [255, 255, 255];
    const mine = colour(getComputedStyle(node).backgroundColor);
    return mine[3] === 1 ? mine.slice(0, 3) : over(mine, behind(node.parentElement));
  };
  const opacity = (node) => node ? getComputedStyle(node).opacity * opacity(node.parentElement) : 1;
  const contrast = (node) => {
    const style = getComputedStyle(node), ground = behind(node);
    const ink = colour(node instanceof SVGElement ? style.fill : style.color);
    const seen = over([...ink.slice(0, 3), ink[3] * opacity(node)], ground);
    const [a, b] = [light(seen), light(ground)];
    return (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  };
  const words = [...document.querySelectorAll("body *")].filter(node =>
    [...node.childNodes].some(c => c.nodeType === 3 && c.data.trim())
    && !["SCRIPT", "STYLE"].includes(node.tagName) && node.getClientRects().length);
  const pale = words.map(node => [contrast(node), node.outerHTML.slice(0, 160)])
    .filter(one => !(one[0] >= READABLE));
  const position = (node) => node && getComputedStyle(node).position;
  const beyond = [...document.querySelectorAll("body *")]
    .filter(node => !node.closest(".scroll, pre"))
    .filter(node => node.getBoundingClientRect().right > innerWidth + 1)
    .map(node => node.outerHTML.slice(0, 160));
  const hintless = [...document.querySelectorAll(".scroll")]
    .filter(node => node.scrollWidth > node.clientWidth)
    .filter(node => !node.previousElementSibling?.matches(".hint") || innerWidth > 700)
    .map(node => node.outerHTML.slice(0, 160));
  document.body.dataset.seen = JSON.stringify({
    title: document.title,
    wide: document.documentElement.scrollWidth <= innerWidth,
    beyond,
    hintless,
    pale,
    hint: getComputedStyle(document.querySelector(".hint")).display !== "none",
    filter: position(document.querySelector(".filter")),
    headings: [...document.querySelectorAll("h1, h2, h3, h4")].map(h => h.tagName),
    first: document.querySelector("h2").textContent,
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
  });
});
</script>
"""


def chromium(page: Path, tmp_path: Path, *options: str) -> str:
    """What the browser makes of the page."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
            *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
            *("--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", *options),
            *("--dump-dom", page.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def in_a_frame(inner: Path, width: int, tmp_path: Path, dark: bool) -> Any:
    """What a probe in a page reports when it is *width* pixels wide.

    The headless browser has no window narrower than 500, so the page is shown in a frame.
    """
    outer = tmp_path / "outer.html"
    outer.write_text(
        f'<iframe src="{inner.as_uri()}" style="width:{width}px;height:900px;border:0"></iframe>'
        "<script>addEventListener('load', () => setTimeout(() => document.body.dataset.seen = "
        "document.querySelector('iframe').contentDocument.body.dataset.seen))</script>"
    )
    options = ["--allow-file-access-from-files", "--window-size=1300,900"]
    options += ["--blink-settings=preferredColorScheme=0"] if dark else []
    dom = chromium(outer, tmp_path, *options)
    found = re.search(r'data-seen="([^"]*)"', dom)
    assert found is not None, dom[-1000:]
    return json.loads(html.unescape(found[1]))


def measured(text: str, width: int, tmp_path: Path, dark: bool) -> Any:
    """Assert that a page can be read where it is *width* pixels wide; what there is to know of it.

    Nothing sticks out, every word has enough contrast, and no level of headings is left out.

    :param text: the page
    """
    inner = tmp_path / "inner.html"
    inner.write_text(text.replace("</body>", _PROBE + "</body>"))
    seen = in_a_frame(inner, width, tmp_path, dark)
    assert seen["wide"], "the page scrolls sideways"
    assert seen["beyond"] == [], "what sticks out does not scroll"
    assert seen["hintless"] == [], "what scrolls sideways does not say so"
    assert not seen["pale"], f"contrasts that are too low: {seen['pale'][:5]}"
    levels = [int(one[1]) for one in seen["headings"]]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(below <= above + 1 for above, below in itertools.pairwise(levels)), levels
    return seen
