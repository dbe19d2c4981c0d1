"""The script of the page in a browser: sorting, filters, values of charts, theme, links into closed parts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from trainers.report import render

SCRIPT = """
const result = {}, text = (row) => row.cells[0].textContent, click = (e) => e.click();
const table = document.querySelector("section[data-metric=accuracy] table"), body = table.tBodies[0];
const names = () => [...body.rows].filter((r) => !r.hidden).map(text);
const head = table.tHead.rows[0].cells[1];
result.original = names();
click(head.querySelector("button")); result.descending = [head.ariaSort, names()];
click(head.querySelector("button")); result.ascending = [head.ariaSort, names()];
click(head.querySelector("button")); result.restored = [head.ariaSort, names()];
const type = (input, value) => { input.value = value; input.dispatchEvent(new Event("input")); };
const search = table.parentNode.previousElementSibling.querySelector("input[type=search]");
type(search, "care"); result.filtered = names(); type(search, "");
const all_of = (selector) => [...document.querySelectorAll(selector)];
const box = (kind, value) => all_of(`fieldset[data-kind=${kind}] input`).find((input) => input.value === value);
click(box("model", "DyMo")); result.withoutModel = names();
const series = all_of("section[data-metric=accuracy] .series[data-model=DyMo]");
result.series = series.map((s) => getComputedStyle(s).display);
click(document.querySelector(".legend button[data-model=DyMo]")); result.shownAgain = names();
click(box("scenario", "random_0.2"));
result.columns = [...table.tHead.rows[0].cells].filter((c) => !c.hidden).map((c) => c.dataset.scenario || "");
click(box("metric", "ece")); result.metric = document.querySelector("section[data-metric=ece]").hidden;
const chart = document.querySelector("section[data-metric=accuracy] .chart"), tip = document.getElementById("tip");
const key = (name) => chart.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
key("ArrowRight"); key("ArrowRight"); result.spoken = document.getElementById("spoken").textContent;
result.tip = [tip.hidden, tip.querySelectorAll("li").length]; key("Escape"); result.closed = tip.hidden;
const frame = chart.getBoundingClientRect();
const place = { clientX: frame.left + 40 * frame.width / 360, clientY: frame.top + 30 };
chart.dispatchEvent(new PointerEvent("pointermove", place));
result.pointed = tip.querySelector("p").textContent;
click(document.getElementById("theme")); result.theme = document.documentElement.dataset.theme;
location.hash = "#differences"; result.width = [document.documentElement.scrollWidth, innerWidth];
result.unnamed = all_of("input").filter((input) => !input.closest("label") && !input.ariaLabel).length;
setTimeout(() => {
  result.opened = document.querySelector("#differences details").open;
  parent.postMessage(JSON.stringify(result), "*");
}, 50);
"""
FRAME = """<iframe src="page.html" width="320" height="700" style="border: 0"></iframe><pre id="outcome"></pre>
<script>onmessage = (event) => { document.getElementById("outcome").textContent = event.data; };</script>"""
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_script_sorts_filters_and_shows_values(made, tmp_path: Path) -> None:
    text = made[0].html.read_text()
    policy = re.search(r"script-src &#39;(sha256-[^&]+)&#39;", text)[1]
    assert render._hash(re.search(r"<script>(.*)</script>", text, re.DOTALL)[1]) == policy
    text = text.replace("script-src ", f"script-src '{render._hash(SCRIPT)}' ")
    (tmp_path / "page.html").write_text(text.replace("</body>", f"<script>{SCRIPT}</script></body>"))
    (tmp_path / "frame.html").write_text(FRAME)  # the page as on a phone: windows are at least 500 wide
    options = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}")
    command = [BROWSER, *options, "--enable-logging=stderr", "--window-size=800,700", "--virtual-time-budget=4000"]
    done = subprocess.run(
        [*command, "--dump-dom", f"file://{tmp_path / 'frame.html'}"], capture_output=True, text=True, timeout=120
    )
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    dom = re.search(r'<pre id="outcome">(.*?)</pre>', done.stdout, re.DOTALL)[1]
    result = json.loads(dom.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    summary = made[0].summary.query("metric == 'accuracy' and scenario == 'none'").set_index("model")["mean"]
    ordered = [m + "†" * ("oracle" in m) for m in summary.sort_values(ascending=False, kind="stable").index]
    assert result["descending"] == ["descending", ordered] and result["ascending"] == ["ascending", ordered[::-1]]
    assert result["restored"] == ["none", result["original"]] and set(result["original"]) == set(ordered)
    assert result["filtered"] == ["M3Care"] and result["withoutModel"] == [m for m in result["original"] if m != "DyMo"]
    assert set(result["series"]) == {"none"} and result["shownAgain"] == result["original"]
    assert "random_0.2" not in result["columns"] and len(result["columns"]) == 7 and result["metric"]
    assert result["spoken"].startswith("20 % of modalities (missing rate 0.3") and result["tip"] == [False, 5]
    assert result["closed"] and result["pointed"] == "complete (missing rate 0)"
    assert result["theme"] in ("dark", "light") and result["opened"]
    assert result["width"][0] <= result["width"][1] == 320 and result["unnamed"] == 0
