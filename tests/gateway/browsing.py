"""Everything that `headrace up` starts, with a model that writes slowly, and a Chromium that looks at its console."""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from cli.local import LocalStack
from connectors.event_loop import EventLoop
from tests.gateway.running import until
from tests.llm_server import LLMServer, Plan, serve

DEADLINE_S = 60.0
"""For whatever the page is to show: the machine may be busy with other tests."""
PROMPT_CHARS = 300
"""The longest question that no guard stops."""
ANSWER = (
    "Both main bearings of turbine T1 get 35 g of lithium complex grease every 400 operating hours [1]. A stroke of "
    "the gun is 1.4 g, so that makes 25 strokes; write them down in the shift log [2].\n\n"
    "Grease until a thin collar shows at the seal and no further: in May 2019 the bearings overheated from too much of "
    "it, not from too little [1]."
)
SLOWLY = Plan(answer=ANSWER, word_s=0.5)  # 26 s in all, unless a test lets it hurry
_CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


def require_chromium() -> str:
    """The browser's path. Skips where there is none; in CI that is a failure."""
    for path in map(shutil.which, _CHROMIUM):
        if path is not None:
            return path
    missing = "Chromium is not installed (chromium)"
    if os.environ.get("CI") == "true":
        pytest.fail(missing)
    pytest.skip(missing)


@dataclass(frozen=True)
class Site:
    """A stack that runs."""

    url: str
    bootstrap: str
    model: LLMServer

    def write_slowly(self) -> None:
        """As a model does."""
        self.model.plan = SLOWLY

    def hurry(self) -> None:
        """What is being written, and all after it, is written at once."""
        self.model.plan = replace(self.model.plan, word_s=0.0)

    def client(self) -> httpx.Client:
        """For what is not done by hand."""
        return httpx.Client(base_url=self.url, timeout=DEADLINE_S, trust_env=False)


@contextmanager
def site_in(data_dir: Path, **variables: str) -> Iterator[Site]:
    """Embedded broker, flows and gateway. `variables`: more of HEADRACE_*."""
    with ExitStack() as stack:
        loop, model = EventLoop(), LLMServer(SLOWLY)
        runner, url = loop.run(serve(model), timeout_s=DEADLINE_S)
        stack.callback(lambda: loop.run(runner.cleanup(), timeout_s=DEADLINE_S))
        environment = stack.enter_context(pytest.MonkeyPatch.context())
        variables |= {"LLM_URL": url, "LLM_MODEL": "test-1", "GUARD_PROMPT_CHARS": str(PROMPT_CHARS)}
        for name, value in variables.items():
            environment.setenv(f"HEADRACE_{name}", value)
        flows = ("ingest", "answer", "usage")
        running = stack.enter_context(
            LocalStack(data_dir, file_roots=(Path("examples"),), drain_s=1.0, flows=flows, gateway_port=0)
        )
        site = Site(running.gateway_url.rstrip("/"), running.bootstrap, model)
        with site.client() as client:
            until(lambda: client.get("/readyz").status_code == httpx.codes.OK, within_s=DEADLINE_S)
        yield site


@contextmanager
def chromium() -> Iterator[Browser]:
    """The system's browser, without a window."""
    path = require_chromium()
    expect.set_options(timeout=DEADLINE_S * 1000)
    arguments = ["--disable-dev-shm-usage"]  # containers have little of it
    if os.geteuid() == 0:
        arguments.append("--no-sandbox")  # which root cannot have
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@contextmanager
def tab(
    browser: Browser, *, width: int = 1440, height: int = 900, dark: bool = False
) -> Iterator[tuple[Page, list[str]]]:
    """A tab of somebody who was never here, and what the browser complains of: errors, and what the policy forbids."""
    complaints: list[str] = []
    with browser.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
    ) as context:
        context.set_default_timeout(DEADLINE_S * 1000)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda line: complaints.append(line.text) if line.type in {"error", "warning"} else None)
        yield page, complaints


def ask(page: Page, question: str) -> None:
    """Type it, and press Enter."""
    page.get_by_label("Question").fill(question)
    page.keyboard.press("Enter")
