"""The console in Debian's Chromium: scripts, other hosts, accessibility, widths, themes, keyboard."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import pytest

from tests.console_site import PATH, PAYLOADS, Site
from tests.console_site import site as site

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium") or ""
if not CHROMIUM:
    pytest.skip("chromium is not installed: apt-get install chromium", allow_module_level=True)
pytest.importorskip("playwright.sync_api", reason="playwright is in the dev extra")

PAGES = {
    "ask": "/",
    "releases": "/releases",
    "release": "/release?ref=main",
    "difference": "/diff?from=first&to=main",
    "document difference": "/diff/document?path=install.md&from=first&to=main",
    "rollback": "/rollback?ref=first",
    "promotion": "/promote?ref=slim",
    "evaluations": "/evaluations",
    "evaluation": "/evaluation?ref=slim",
    "golden": "/golden",
    "documents": "/documents",
    "document": "/document?path=install.md&start=2&end=14",
    "jobs": "/jobs",
    "report": "/report",
    "keys": "/keys",
    "sign in": "/login",
    "error": "/release?ref=nowhere",
}
QUESTION = "What is the default port of the server?"
Open = Callable[..., "AbstractContextManager[Page]"]


@pytest.fixture(scope="module")
def browser(site: Site) -> "Iterator[Browser]":
    # After the site: Playwright keeps an event loop running in this thread, evaluating needs one of its own.
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield made
        made.close()


@pytest.fixture
def open_page(browser: "Browser", site: Site) -> Open:
    @contextmanager
    def opened(path: str, allowed: tuple[int, ...] = (200,), **how: Any) -> "Iterator[Page]":
        """A page that tells no error, asks no other host and opens no dialog."""
        how.setdefault("viewport", {"width": 1280, "height": 900})
        context = browser.new_context(base_url=site.url, **how)
        page = context.new_page()
        wrong: list[str] = []
        own = urlsplit(site.url).netloc

        def told(message: Any) -> None:
            # The browser itself says so of a page whose status is an error.
            if message.type in ("error", "warning") and not (
                allowed != (200,) and "status of" in message.text
            ):
                wrong.append(message.text)

        def asked(request: Any) -> None:
            if urlsplit(request.url).netloc not in (own, ""):
                wrong.append(request.url)

        def opened(dialog: Any) -> None:
            wrong.append(f"dialog {dialog.message}")
            dialog.dismiss()

        page.on("console", told)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", asked)
        page.on("dialog", opened)
        reply = page.goto(path)
        assert reply is not None and reply.status in allowed
        yield page
        assert wrong == []
        context.close()

    return opened


def serious(page: "Page") -> list[str]:
    """What axe finds that is serious or critical."""
    page.evaluate(resources.files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
    found: dict[str, Any] = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{one['id']}: {one['nodes'][0]['html'][:200]}: {one['nodes'][0]['failureSummary'][:300]}"
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
    ]


def overflow(page: "Page") -> int:
    """By how many pixels the page is wider than the window."""
    return int(page.evaluate("document.documentElement.scrollWidth - innerWidth"))


@pytest.mark.parametrize("name", PAGES)
def test_pages_are_accessible_in_both_themes_and_widths(open_page: Open, name: str) -> None:
    allowed = (404,) if name == "error" else (200,)
    for width, scheme in ((1280, "light"), (360, "dark")):
        with open_page(
            PAGES[name], allowed, viewport={"width": width, "height": 800}, color_scheme=scheme
        ) as page:
            assert serious(page) == [], (width, scheme)
            assert overflow(page) <= 0, width


def test_an_answer_appears_as_it_is_written_and_keeps_its_address(open_page: Open) -> None:
    with open_page("/") as page:
        page.get_by_label("Question").fill(QUESTION)
        page.keyboard.press("Enter")
        page.wait_for_url("**/answers/*")
        page.locator(".source").first.wait_for()
        assert (
            page.locator(".source mark").first.inner_text()
            in page.locator(".source .text").first.inner_text()
        )
        assert serious(page) == []
        page.locator("a.cite").first.hover()
        assert "on" in (page.locator("#source-a-1").get_attribute("class") or "")
        page.locator(".answer a.cite").first.click()
        assert page.url.endswith("#source-a-1")
        answer = page.locator(".answer").inner_text()
        page.reload()
        assert page.locator(".answer").inner_text() == answer


def test_two_releases_stand_side_by_side(open_page: Open) -> None:
    with open_page("/") as page:
        page.get_by_label("Question").fill(QUESTION)
        page.get_by_label("Compare with").select_option("first")
        page.get_by_role("button", name="Ask", exact=True).click()
        page.wait_for_url("**/compare*")
        assert page.locator(".pair > section").count() == 2
        assert serious(page) == [] and overflow(page) <= 0


def test_without_scripts_everything_is_there(open_page: Open) -> None:
    with open_page("/", java_script_enabled=False) as page:
        page.get_by_label("Question").fill(QUESTION)
        page.get_by_role("button", name="Ask", exact=True).click()
        assert "/answers/" in page.url
        page.locator(".answer a.cite").first.click()
        assert page.locator("#source-a-1 mark").is_visible()
        page.get_by_label("Yes").check()
        page.get_by_role("button", name="Send").click()
        assert "kept with the answer" in page.locator("#said").inner_text()


def test_the_way_past_the_gate_asks_for_a_reason(open_page: Open) -> None:
    with open_page("/promote?ref=slim", viewport={"width": 360, "height": 800}) as page:
        page.get_by_text("Promote it past the gate").first.click()
        page.get_by_role("button", name="Promote it past the gate").click()
        assert page.evaluate("document.activeElement.name") == "reason" and "/promote" in page.url
        assert serious(page) == [] and overflow(page) <= 0


def test_the_keyboard_is_enough_to_roll_back(open_page: Open, site: Site) -> None:
    def press_until(page: "Page", name: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            focused = page.evaluate("[document.activeElement.innerText, document.activeElement.ariaLabel]")
            if any(text and text.startswith(name) for text in focused):
                assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
                page.keyboard.press("Enter")
                return
        raise AssertionError(name)

    with open_page("/") as page:
        press_until(page, "Skip to content")
        assert page.evaluate("document.activeElement.id") == "content"
        page.goto("/")
        press_until(page, "Releases")
        page.wait_for_url("**/releases")
        press_until(page, "Roll back to")
        page.wait_for_url("**/rollback*")
        press_until(page, "Serve ")
        page.wait_for_url("**/releases?done=*")
        assert "Rolled back" in page.locator("[role=status]").first.inner_text()


def test_a_document_is_uploaded_and_served(open_page: Open, tmp_path: Path) -> None:
    (tmp_path / "printer.md").write_text("# Printer\n\nThe printer stands in room twelve.\n")
    with open_page("/documents") as page:
        page.get_by_text("Add or replace documents").click()
        page.get_by_label("Into the folder").fill("guides")
        page.get_by_label("Files").set_input_files(str(tmp_path / "printer.md"))
        page.get_by_role("button", name="Upload and publish").click()
        page.wait_for_url("**/job?id=*")
        page.locator("text=guides/printer.md").first.wait_for(timeout=90_000)
        assert serious(page) == [] and overflow(page) <= 0


def test_golden_questions_are_ticked_and_decided_on_without_scripts(open_page: Open) -> None:
    with open_page("/golden?state=candidate", java_script_enabled=False) as page:
        waiting = page.get_by_role("checkbox").count()
        page.get_by_role("checkbox").first.check()
        page.get_by_role("link", name="Tick all").click()
        assert page.locator(":checked").count() == waiting > 1
        page.get_by_role("checkbox").first.uncheck()
        page.locator(".bulk").get_by_role("button", name="Approve").click()
        assert f"{waiting - 1} question" in page.locator("[role=status]").inner_text()
        assert page.get_by_role("checkbox").count() == 1


def test_going_back_after_an_answer_shows_the_page_before(open_page: Open) -> None:
    with open_page("/") as page:
        page.get_by_label("Question").fill(QUESTION)
        page.keyboard.press("Enter")
        page.wait_for_url("**/answers/*")
        page.locator(".answer a.cite").first.click()
        page.go_back()
        assert page.locator(".answer").is_visible()
        page.go_back(wait_until="load")
        page.get_by_role("heading", name="Ask", exact=True).wait_for()


def test_axe_would_find_what_is_wrong(open_page: Open) -> None:
    with open_page("/") as page:
        page.evaluate("document.querySelector('main').insertAdjacentHTML('beforeend', '<button></button>')")
        assert any(found.startswith("button-name") for found in serious(page))


def ask_each(page: "Page", texts: Iterable[str]) -> None:
    """Send a question with each text in it, past what the form's script does."""
    for text in texts:
        page.goto("/")
        page.evaluate(
            "text => { const form = document.querySelector('form[data-ask]');"
            " form.elements.question.value = `What does the wombat say? ${text}`; form.submit(); }",
            text,
        )
        page.wait_for_url("**/answers/*")
        assert "wombat" in page.locator("h1").inner_text()


def test_nothing_in_questions_or_documents_runs(open_page: Open) -> None:
    with open_page("/document?path=" + quote(PATH)) as page:
        assert PAYLOADS[0] in page.locator("article").inner_text()
        for path in ("/documents", "/evaluation?ref=slim", "/golden", "/releases"):
            page.goto(path)
        ask_each(page, PAYLOADS)


@pytest.mark.slow
@pytest.mark.skipif("PLUMBLINE_DATA" not in os.environ, reason="PLUMBLINE_DATA is not set")
def test_no_naughty_string_runs(open_page: Open) -> None:
    listed = Path(os.environ["PLUMBLINE_DATA"]) / "naughty_strings" / "blns.json"
    texts = json.loads(listed.read_text(encoding="utf-8"))
    with open_page("/") as page:
        ask_each(page, (text for text in texts if "<" in text or "script" in text.lower()))
