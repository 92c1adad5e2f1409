import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from gateway.keys import digest_of
from tests.gateway.browsing import ANSWER, PROMPT_CHARS, Site, ask, chromium, site_in, tab
from tests.gateway.running import RunningGateway, until
from tests.llm_server import Plan

DOCUMENTS = Path("examples/documents")
QUESTION = "How much grease do the main bearings of turbine T1 need?"
SHOWN = re.sub(r"\[(\d)\]", r"\1", ANSWER)  # citations are buttons


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> Iterator[Site]:
    """With something to search in."""
    del browser  # where there is none, nothing is started
    with site_in(tmp_path_factory.mktemp("site")) as site, site.client() as client:
        for name in ("turbine-maintenance.md", "job-hydro-technician.html"):
            sent = client.post("/v1/documents", files={"file": (name, (DOCUMENTS / name).read_bytes())})
            assert sent.status_code == 202, sent.text
            job = f"/v1/jobs/{sent.json()['job_id']}"
            until(lambda job=job: client.get(job).json()["state"] == "completed", within_s=60)  # type: ignore[misc]
        yield site


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(site: Site, browser: Browser) -> Iterator[Page]:
    """The console, live. Whatever a test does with it, the browser has nothing to complain of."""
    site.write_slowly()
    with tab(browser) as (page, complaints):
        page.goto(site.url)
        expect(page.locator("#link")).to_have_text("live")
        yield page
        site.hurry()
        assert complaints == []


def begun(page: Page) -> str:
    """Wait for the first words of an answer that is not complete; them."""
    text = page.locator("#answer-text")
    expect(text).to_contain_text("Both main")
    expect(page.locator("#job-state")).to_have_text("running")
    return text.inner_text().strip()


def test_files_chosen_or_dropped_are_followed_until_they_can_be_searched(page: Page) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose files").click()
    chooser.value.set_files(DOCUMENTS / "emergency-plan.pdf")
    dropped = page.evaluate_handle(
        """text => {
            const data = new DataTransfer();
            data.items.add(new File([text], "on-call-runbook.md", { type: "text/markdown" }));
            return data;
        }""",
        (DOCUMENTS / "on-call-runbook.md").read_text(),
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": dropped})

    rows = page.locator("#uploads > li")
    expect(rows).to_have_count(2)
    for name in ("emergency-plan.pdf", "on-call-runbook.md"):
        row = rows.filter(has_text=name)
        expect(row.locator(".state")).to_have_text("searchable")
        expect(row.locator(".detail")).to_have_text(re.compile(r"^\d+ chunks$"))
    page.get_by_role("link", name="emergency-plan.pdf", exact=True).click()
    expect(page.get_by_role("heading", name="emergency-plan.pdf")).to_be_visible()
    expect(page.locator("#job-succeeded")).to_contain_text("chunks")


def test_an_answer_is_read_while_it_is_written_and_ends_with_what_it_cites(page: Page, site: Site) -> None:
    ask(page, QUESTION)
    partial = begun(page)
    assert ANSWER.startswith(partial)
    assert len(partial) < len(ANSWER)
    assert page.get_by_role("heading", name=QUESTION).is_visible()

    site.hurry()
    expect(page.locator("#job-state")).to_have_text("completed")
    expect(page.locator("#answer-text")).to_have_text(SHOWN)
    first = page.locator("#citations > li").first
    expect(first.locator(".document")).to_have_text("turbine-maintenance.md")
    expect(first.locator("blockquote")).to_be_hidden()
    page.get_by_role("button", name="Citation 1:").first.click()
    expect(first.locator("blockquote")).to_contain_text("grease")
    expect(page.locator("#job-where")).to_have_text("completed")
    expect(page.locator("#timeline > li .state").last).to_have_text("completed")


def test_a_page_that_is_loaded_again_midway_goes_on_with_the_answer(page: Page, site: Site) -> None:
    ask(page, QUESTION)
    begun(page)
    page.reload()
    assert ANSWER.startswith(begun(page))
    assert page.get_by_role("heading", name=QUESTION).is_visible()

    site.hurry()
    expect(page.locator("#answer-text")).to_have_text(SHOWN)
    expect(page.locator("#citations > li")).to_have_count(2)


def test_a_stopped_job_goes_on_once_a_person_has_approved_it(page: Page, site: Site) -> None:
    site.hurry()
    ask(page, "Please tell me what is known of the turbine. ".ljust(PROMPT_CHARS + 1, "?"))
    review = page.locator("#reviews-list > li")
    expect(review).to_contain_text(f"its prompt has {PROMPT_CHARS + 1} characters, and {PROMPT_CHARS} are allowed")
    expect(page.locator("#job-state")).to_have_text("awaiting review")
    review.get_by_role("button", name="Show what was asked").click()
    expect(review.locator("pre")).to_contain_text("user: Please tell me")

    review.get_by_role("button", name="Reject").click()
    expect(review.get_by_role("alert")).to_contain_text("why it is rejected")
    review.get_by_label("Note").fill("worth it")
    review.get_by_role("button", name="Approve").click()

    expect(review).to_have_count(0)
    expect(page.locator("#reviews-empty")).to_have_text("No job waits for a decision.")
    expect(page.locator("#job-state")).to_have_text("completed")
    expect(page.locator("#timeline")).to_contain_text("worth it")


def test_a_dead_letter_says_why_and_starts_again_at_a_click(page: Page, site: Site) -> None:
    site.model.plan = Plan(answer=ANSWER, failures_before_success=1, first_fault="400")
    ask(page, QUESTION)
    letter = page.locator("#letters-list > li")
    expect(letter).to_contain_text("the model answered 400")
    expect(page.locator("#job-state")).to_have_text("dead-lettered")
    expect(page.locator("#letters-count")).to_have_text("1")

    letter.get_by_role("button", name="Redrive").click()

    expect(letter).to_have_count(0)
    expect(page.locator("#job-state")).to_have_text("completed")
    expect(page.locator("#answer-text")).to_have_text(SHOWN)
    page.get_by_label("redriven too").check()
    expect(letter).to_contain_text("redriven at")
    expect(letter.get_by_role("button", name="Redrive")).to_be_hidden()


def test_a_cancelled_answer_is_cut_off_and_leaves_no_text(page: Page, site: Site) -> None:
    ask(page, QUESTION)
    begun(page)
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#job-state")).to_have_text("cancelled")
    expect(page.locator("#job-user-sees")).to_have_text("Your request was cancelled.")
    expect(page.locator("#job-answer")).to_be_hidden()
    expect(page.locator("#jobs-list > li").first.locator(".state")).to_have_text("cancelled")
    until(site.model.closed_early.is_set)


def test_a_keyboard_alone_asks_and_opens_a_job(page: Page, site: Site) -> None:
    site.hurry()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="To the question")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_label("Question")).to_be_focused()
    page.keyboard.type("What is the grease")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("pressed into?")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="What is the grease pressed into?")).to_be_visible()
    expect(page.locator("#job-state")).to_have_text("completed")
    expect(page.get_by_label("Question")).to_be_focused()  # for the next one
    expect(page.get_by_label("Question")).to_have_value("")

    second = page.locator("#jobs-list a").nth(1)
    for _ in range(20):
        page.keyboard.press("Tab")
        if second.evaluate("link => link === document.activeElement"):
            break
    page.keyboard.press("Enter")
    expect(second).to_have_attribute("aria-current", "true")


def test_everything_that_can_be_used_has_a_name(page: Page) -> None:
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, textarea, a, svg[role=img], meter, progress")]
            .filter(node => !node.labels?.length && !node.ariaLabel && !node.textContent.trim())
            .map(node => node.outerHTML)"""
    )
    assert nameless == []
    for landmark in ("banner", "navigation", "main"):
        expect(page.get_by_role(landmark)).to_have_count(1)
    assert page.evaluate("new Set([...document.querySelectorAll('[id]')].map(node => node.id)).size") == page.evaluate(
        "document.querySelectorAll('[id]').length"
    )


def test_lag_and_spend_are_drawn(page: Page) -> None:
    for flow in ("ingest", "answer", "usage"):
        row = page.locator("#flows-list > li").filter(has=page.get_by_role("heading", name=flow))
        expect(row.get_by_role("img").first).to_have_attribute("aria-label", re.compile(f"Lag of {flow}: "))
    ask(page, QUESTION)
    expect(page.locator("#usage-list > li")).to_contain_text("default")
    expect(page.locator("#usage-list .sum")).to_contain_text("calls")


def test_a_narrow_screen_shows_the_lists_or_a_job_and_never_scrolls_sideways(site: Site, browser: Browser) -> None:
    site.hurry()
    with tab(browser, width=360, height=740) as (page, complaints):
        page.goto(site.url)
        expect(page.locator("#link")).to_have_text("live")
        for view in ("lists", "job"):
            if view == "job":
                ask(page, QUESTION)
                expect(page.locator("#citations > li")).to_have_count(2)
                expect(page.locator("#jobs-list")).to_be_hidden()
            assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.get_by_role("link", name="All jobs").click()
        expect(page.locator("#jobs-list")).to_be_visible()
        expect(page.locator("#job-title")).to_be_hidden()
        assert complaints == []


def test_a_gateway_that_is_gone_is_said_to_be_and_looked_for(site: Site, browser: Browser) -> None:
    with tab(browser) as (page, _):  # browsers complain of connections that fail
        page.goto(site.url)
        expect(page.locator("#jobs-list > li").first).to_be_visible()
        page.route("**/v1/**", lambda route: route.abort())
        page.route("**/readyz", lambda route: route.abort())
        expect(page.locator("#link")).to_have_text("reconnecting")
        expect(page.get_by_role("alert").filter(has_text="The gateway does not answer.")).to_be_visible()
        expect(page.locator("#jobs-list > li").first).to_be_visible()
        page.unroute_all()
        expect(page.locator("#link")).to_have_text("live")
        expect(page.locator("#trouble")).to_be_hidden()


def test_a_gateway_with_keys_asks_for_one_and_the_tab_keeps_it(site: Site, browser: Browser, tmp_path: Path) -> None:
    keys = json.dumps({digest_of("hr_acme"): "acme"})
    with (
        RunningGateway(site.bootstrap, tmp_path, HEADRACE_API_KEYS=keys) as gateway,
        tab(browser) as (page, _),  # browsers complain of 401
    ):
        gateway.ready()
        page.goto(gateway.url)
        key = page.get_by_role("textbox", name="Key")
        key.fill("hr_guessed")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert").filter(has_text="does not know this key")).to_be_visible()
        key.fill("hr_acme")
        page.keyboard.press("Enter")
        expect(page.locator("#caller")).to_have_text("tenant acme")
        expect(page.locator("#jobs-empty")).to_contain_text("No jobs yet.")
        page.reload()
        expect(page.locator("#caller")).to_have_text("tenant acme")
        page.get_by_role("button", name="Forget the key").click()
        expect(page.get_by_role("heading", name="API key")).to_be_visible()
