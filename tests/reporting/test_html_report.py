"""report.html as a browser shows it: headless Chromium, driven by playwright."""

import re
import shutil

import pytest
from helpers import copied

from tune.report import write_report

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt-get install chromium)")
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
CONTRAST = """() => {
  const parts = colour => (colour.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = node => {
    for (; node; node = node.parentElement) {
      const [r, g, b, a] = parts(getComputedStyle(node).backgroundColor);
      if (a === undefined || a > 0) return [r, g, b];
    }
    return matchMedia("(prefers-color-scheme: dark)").matches ? [0, 0, 0] : [255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !node.getClientRects().length || node.closest("script,style")) continue;
    const style = getComputedStyle(node);
    const ink = light(parts(node.namespaceURI.endsWith("svg") ? style.fill : style.color));
    const paper = light(behind(node.closest("svg") ? node.closest("div") : node));
    const ratio = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    found.push([ratio, walker.currentNode.textContent.trim()]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        flags = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    run = copied(tmp_path_factory.mktemp("page"))
    write_report(run)
    return run / "report.html"


@pytest.fixture(scope="module")
def opened(browser, report):
    """opened(size, scheme): the page, once its figures are drawn, each loaded once; no console error until the end."""
    errors, pages = [], {}

    def show(size="desktop", scheme="light"):
        if (size, scheme) not in pages:
            width, height = SIZES[size]
            context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, offline=True)
            page = pages[size, scheme] = context.new_page()
            page.set_default_timeout(120_000)  # drawn without a GPU, on a machine that others use
            page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.goto(report.as_uri())
            page.wait_for_selector("#plot-budget .bars")
            page.wait_for_selector("#plot-parallel canvas")
        return pages[size, scheme]

    yield show
    assert errors == []


def column(page, name):
    """The texts of a column of the table of trials."""
    heads = page.locator("#trials th").all_inner_texts()
    place = [re.sub(r"\W", "", head) for head in heads].index(name) + 1
    return page.locator(f"#trials tbody td:nth-child({place})").all_inner_texts()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_the_answer_is_there_and_all_text_can_be_read(opened, size, scheme):
    page = opened(size, scheme)
    answer = page.locator("#answer")
    for words in ("best learning_rate", "0.002913", "Can I rely on it?", "Partly.", "2.1374", "2.1248 to 2.1698", "88%"):
        assert words in answer.inner_text()
    place = answer.bounding_box()
    assert place["y"] + place["height"] < SIZES[size][1]  # seen without scrolling
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
    texts = page.evaluate(CONTRAST)
    assert len(texts) > 200 and [text for text in texts if text[0] < 4.5] == []
    assert page.locator("#plot-curves .scatterlayer .trace").count() >= 4
    assert page.locator("#plot-curves .shapelayer path").count() == 3  # the rungs
    assert page.locator("#plot-landscape .points path").count() == 16  # those at a range's end, too
    ink = page.evaluate("getComputedStyle(document.body).color")
    assert page.locator("#plot-importance .xerror").first.evaluate("line => getComputedStyle(line).stroke") == ink
    for name in ("curves", "parameters", "importance", "budget"):  # no title under a legend or beyond the edge
        plot = page.locator(f"#plot-{name}")
        titles = [title.bounding_box() for title in plot.locator("[class^=x][class*=title]").all()]
        ends = [title["x"] + title["width"] for title in titles]
        assert max(ends) <= plot.bounding_box()["x"] + plot.bounding_box()["width"], name
        for legend in plot.locator(".legend").all():
            assert max(t["y"] + t["height"] for t in titles) <= legend.bounding_box()["y"] + 1, name


def test_the_table_sorts_and_filters_with_the_keyboard_too(opened):
    page = opened()
    losses = [float(text) for text in column(page, "val_loss")]
    assert losses == sorted(losses) and len(losses) == 22
    assert page.get_by_role("button", name="val_loss ▲").count() == 1
    page.get_by_role("button", name="batch_size").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    sizes = [int(text) for text in column(page, "batch_size")]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == 64
    page.locator("#filter").fill("paused batch_size>=32")
    assert set(column(page, "status")) == {"paused"} and min(map(int, column(page, "batch_size"))) == 32
    assert re.fullmatch(r"\d+ of 22 trials", page.locator("#count").inner_text())
    page.evaluate("data.columns[data.columns.indexOf('batch_size')] = 'größe.x'")  # a custom model may name it so
    page.locator("#filter").fill("größe.x>=32")
    assert min(map(int, column(page, "batch_size"))) == 32
    page.evaluate("data.columns[data.columns.indexOf('größe.x')] = 'batch_size'")
    for asked in ("t00002", "00002", "trial_id=t00002", "trial_id=00002"):  # the run's ids have no letter
        page.locator("#filter").fill(asked)
        assert "00002" in column(page, "trial_id")
    page.locator("#filter").fill("no such thing")
    assert column(page, "status") == []
    page.locator("#clear").click()
    assert len(column(page, "status")) == 22


def test_brushing_an_axis_narrows_the_table(opened):
    page = opened()
    plot = page.locator("#plot-parallel")
    plot.scroll_into_view_if_needed()
    axis = plot.locator(".axis-brush").nth(1)  # batch_size
    box = axis.locator(".background").bounding_box()
    x, low = box["x"] + box["width"] / 2, box["y"] + box["height"]
    page.mouse.move(x, low - 12)
    page.mouse.down()
    page.mouse.move(x, low - box["height"] * 0.35, steps=8)
    page.mouse.up()
    page.wait_for_function("document.getElementById('count').textContent.includes('brushed')")
    sizes = set(map(int, column(page, "batch_size")))
    assert sizes and sizes < {4, 8, 16, 32, 64} and len(column(page, "status")) < 16
    page.locator("#clear").click()
    assert len(column(page, "status")) == 22


def test_hovering_names_the_trial_and_files_are_saved(opened):
    page = opened()
    page.locator("#plot-parameters").scroll_into_view_if_needed()
    point = page.locator("#plot-parameters .subplot.xy .points path").first.bounding_box()
    page.mouse.move(point["x"] + point["width"] / 2, point["y"] + point["height"] / 2)
    page.wait_for_selector("#plot-parameters .hovertext")
    assert re.search(r"trial \d{5}", page.locator("#plot-parameters .hovertext").first.text_content())
    for kind, name, start in (
        ("csv", "trials", b"trial_id,"),
        ("csv", "parallel", b"trial_id,"),
        ("png", "curves", b"\x89PNG"),
    ):
        with page.expect_download() as download:
            page.locator(f"[data-save={kind}][data-of={name}]").click()
        path = download.value.path()
        assert path.read_bytes().startswith(start) and download.value.suggested_filename == f"{name}.{kind}"
