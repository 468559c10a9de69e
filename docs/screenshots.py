"""The console's pictures in docs/screenshots: `make screenshots`.

Makes a knowledge base of this project's own pages in demo/console, with a golden set, a release that was
let past the gate and two candidates that were not, serves it, and looks at it in Debian's Chromium.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from tests.running import rag_serve

HERE = Path(__file__).resolve().parent
KB = HERE.parent / "demo" / "console"
SOURCES = HERE.parent / "demo" / "console-sources"
PAGES = ("configuration.md", "judge.md", "teams.md", "tour.md")
RAG = [sys.executable, "-c", "from api.cli import main; main()"]
LAPTOP, PHONE = (1200, 740), (360, 740)


def rag(*words: str, may_refuse: bool = False) -> None:
    """Run a command of `rag` on the knowledge base of the pictures."""
    done = subprocess.run([*RAG, *words, "--kb", str(KB)], check=False)
    if done.returncode and not (may_refuse and done.returncode == 1):
        raise SystemExit(done.returncode)


def publish(message: str, *options: str) -> None:
    """Publish the sources, or leave a candidate where the gate says no."""
    rag("ingest", str(SOURCES), "--prune", "-m", message, *options, may_refuse=True)


def build() -> None:
    """The knowledge base that the pictures show."""
    for folder in (KB, SOURCES):
        shutil.rmtree(folder, ignore_errors=True)
    SOURCES.mkdir(parents=True)
    for name in PAGES:
        shutil.copy(HERE / name, SOURCES)
    subprocess.run([*RAG, "init", str(KB)], check=True)
    publish("First pages")
    rag("golden", "generate", "--from", "corpus", "-n", "16")
    rag("golden", "review", "--all", "--approve")
    shutil.copy(HERE / "answers.md", SOURCES)
    publish("A page about answers, golden questions", "--no-gate", "--reason", "the first golden set")
    rag("tag", "answers")
    (SOURCES / "tour.md").write_text((HERE / "tour.md").read_text().replace("branch", "draft"))
    publish("Call a branch a draft")
    shutil.copy(HERE / "tour.md", SOURCES)
    rag("branch", "slim")
    (SOURCES / "judge.md").unlink()
    publish("Without the page about the judge", "--branch", "slim")
    rag("eval", "slim", may_refuse=True)
    rag("golden", "generate", "--from", "corpus", "-n", "6")


def refused() -> str:
    """The branch of the candidate that the gate kept out."""
    listed = subprocess.run([*RAG, "branch", "--json", "--kb", str(KB)], check=True, stdout=subprocess.PIPE)
    return next(
        str(one["branch"]) for one in json.loads(listed.stdout) if one["branch"].startswith("candidate-")
    )


def shoot(browser: Browser, url: str, name: str, path: str, size: tuple[int, int], theme: str) -> None:
    """One picture."""
    width, height = size
    context = browser.new_context(
        base_url=url,
        viewport={"width": width, "height": height},
        color_scheme="dark" if theme == "dark" else "light",
    )
    page = context.new_page()
    page.goto(path)
    if path == "/":
        page.get_by_label("Question").fill("What does a branch cost?")
        page.get_by_role("button", name="Ask", exact=True).click()
        page.wait_for_url("**/answers/*")
        page.locator(".source").first.wait_for()
    page.screenshot(path=HERE / "screenshots" / f"{name}.png")
    context.close()


def main() -> None:
    """Build, serve, look."""
    if not (KB / "plumbline.toml").exists() or "--again" in sys.argv:
        build()
    (HERE / "screenshots").mkdir(exist_ok=True)
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with rag_serve(KB) as (_, url), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        for name, path, size, theme in (
            ("ask", "/", LAPTOP, "light"),
            ("ask-dark", "/", LAPTOP, "dark"),
            ("ask-phone", "/", PHONE, "light"),
            ("releases", "/releases", LAPTOP, "light"),
            ("releases-phone", "/releases", PHONE, "dark"),
            ("difference", "/diff?from=answers&to=slim", LAPTOP, "light"),
            ("promotion", f"/promote?ref={refused()}", (1200, 640), "light"),
            ("evaluation", "/evaluation?ref=slim", LAPTOP, "light"),
            ("golden", "/golden", (1200, 560), "light"),
        ):
            shoot(browser, url, name, path, size, theme)
        browser.close()


if __name__ == "__main__":
    main()
