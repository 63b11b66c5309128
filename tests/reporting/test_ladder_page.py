"""The page of a ladder as a browser shows it, in two widths and both colour schemes."""

import pytest
from test_html_report import CONTRAST, SIZES, browser, pytestmark
from test_ladder_report import run_dir

from tune.report import write_report

__all__ = ["browser", "pytestmark", "run_dir"]

CROWDED = """() => [...document.querySelectorAll("[id^=plot-]")].flatMap(plot => {
  const edge = plot.getBoundingClientRect(), found = [];
  const texts = [...plot.querySelectorAll("svg text")]
    .filter(text => text.textContent.trim() && text.getClientRects().length)
    .map(text => [text.textContent.trim(), text.getBoundingClientRect()]);
  texts.forEach(([words, one], place) => {
    if (one.left < edge.left - 1 || one.right > edge.right + 1 || one.top < edge.top - 1 || one.bottom > edge.bottom + 1)
      found.push(`${plot.id}: ${words} is cut off`);
    for (const [others, other] of texts.slice(place + 1)) {
      const wide = Math.min(one.right, other.right) - Math.max(one.left, other.left);
      const high = Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top);
      if (wide > 1 && high > 2) found.push(`${plot.id}: ${words} lies on ${others}`);
    }
  });
  return found;
})"""
"""texts of a figure that lie on each other, or beyond the figure's edge"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_figures_can_be_read_and_nothing_leaves_the_machine(browser, run_dir, size, scheme):
    write_report(run_dir)
    asked, errors, (width, height) = [], [], SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, offline=True)
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((run_dir / "report.html").as_uri())
    for name, drawn in (("levels", ".contour"), ("path", ".points path"), ("forecast", ".points path")):
        page.wait_for_selector(f"#plot-{name} {drawn}", state="attached")
    page.wait_for_selector("#plot-curves .scatterlayer .trace", state="attached")
    assert all(url.startswith(("file:", "data:", "blob:")) for url in asked), asked
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    crowded = page.evaluate(CROWDED)
    assert not crowded, "; ".join(crowded)
    assert [text for text in page.evaluate(CONTRAST) if text[0] < 4.5] == []
    assert "learning rate, 90%" in page.locator("#answer").inner_text()
    assert errors == []
    context.close()
