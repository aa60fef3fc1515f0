"""The worklist in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from imaging.errors import Reason
from services.accounts.key_store import FIRST_KEY_FILE
from services.store.jobs import Delivery
from services.store.outbox import Answer
from services.store.rows import Stage

# fmt: off
BROWSERS = ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-quic",
]
# fmt: on


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = next((path for path in BROWSERS if Path(path).exists()), None)
    if executable is None:
        pytest.fail("no Chromium is here (Debian: chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield browser
        browser.close()


def log_in(page: Page, key: str) -> None:
    page.get_by_label("API key").fill(key.strip())
    page.get_by_role("button", name="Log in").click()


@pytest.fixture
def page(browser: Browser, gateway) -> Iterator[Page]:
    """The worklist, opened; every request it makes goes to the gateway, and no script fails or is refused."""
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(gateway.url)
    log_in(page, (gateway.settings.data_dir / FIRST_KEY_FILE).read_text())
    expect(page.locator("#login")).to_be_hidden()
    yield page
    page.close()
    # Chromium itself notes answers of 4xx on the console.
    assert [text for text in said if not text.startswith("Failed to load resource")] == []
    assert all(url.startswith(gateway.url) for url in asked)


def test_empty_worklist_says_what_to_do(page: Page):
    expect(page.get_by_text("Research use only.")).to_be_visible()
    expect(page.get_by_text("No studies yet")).to_be_visible()


def test_uploaded_study_is_followed_to_its_result(page: Page, gateway, nifti):
    page.set_input_files("#files", {"name": "DOE^JOHN.nii.gz", "mimeType": "application/gzip", "buffer": nifti})
    expect(page.locator("#upload-message")).to_contain_text("Taken in")
    panel = page.locator("#panel")
    expect(panel).to_contain_text("Next in line")
    [job] = gateway.jobs.queued()

    gateway.jobs.claim(job.id, "worker-of-the-test", lease_s=60)
    gateway.jobs.renew_lease(job.id, "worker-of-the-test", lease_s=60, reached=(Stage.AANET, 0.62))
    expect(panel.locator(".verdict")).to_contain_text("Along the arteries")
    expect(panel.locator(".verdict")).to_contain_text("62 %")

    gateway.finish(job.id, lesions=2, files=("mask.nii.gz", "artery.nii.gz"))
    expect(panel.locator(".verdict")).to_contain_text("2 emboli")
    expect(panel.locator("table.lesions tbody tr")).to_have_count(2)
    expect(panel.get_by_text("DICOM SEG")).to_have_count(0)
    with page.expect_download() as download:
        panel.get_by_text("Emboli (NIfTI)").click()
    assert Path(download.value.path()).read_bytes() == b"content of mask.nii.gz"
    expect(page.locator("#jobs .tag")).to_contain_text("2 emboli")


def test_refused_upload_says_why(page: Page):
    page.set_input_files("#files", {"name": "a.dcm", "mimeType": "application/dicom", "buffer": b"%PDF-1.7" * 100})
    expect(page.locator("#upload-message")).to_contain_text("neither DICOM nor NIfTI")


def test_what_a_sender_wrote_is_shown_as_text(page: Page, gateway):
    script = "<img src=x onerror=document.title='taken'>"
    job = gateway.jobs.open_receiving(
        study_instance_uid="1.2", series_instance_uid="1.2.3", calling_ae_title="<b>AE</b>"
    )
    gateway.jobs.set_aside(job.id, [Reason("intake.x", script)], instance_count=3, completion_reason=script)
    page.goto(f"{gateway.url}/#{job.id}")
    expect(page.locator("#panel .reason")).to_contain_text(script)
    expect(page.locator("#jobs")).to_contain_text("<b>AE</b>")
    assert page.title() == "Embolens worklist"


def test_long_list_is_read_page_by_page_and_filtered(page: Page, gateway):
    for number in range(70):
        job = gateway.jobs.open_receiving(
            study_instance_uid=f"1.2.{number}", series_instance_uid=f"1.3.{number}", calling_ae_title="CT"
        )
        if number % 2:
            gateway.jobs.set_aside(job.id, [Reason("intake.x", "x")], instance_count=3, completion_reason="quiet")
    page.reload()
    expect(page.locator("#jobs tr")).to_have_count(50)
    page.get_by_text("Show older studies").click()
    expect(page.locator("#jobs tr")).to_have_count(70)
    expect(page.get_by_text("Show older studies")).to_be_hidden()
    page.get_by_role("button", name="Needs a look").click()
    expect(page.locator("#jobs tr")).to_have_count(35)


def test_queued_study_is_cancelled_from_the_panel(page: Page, gateway, nifti):
    job_id = gateway.submit(nifti)
    page.goto(f"{gateway.url}/#{job_id}")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#panel .verdict")).to_contain_text("Cancelled")
    expect(page.get_by_role("button", name="Try again")).to_be_visible()
    assert gateway.jobs.get(job_id).state == "cancelled"


def test_series_cancelled_while_it_arrives_is_not_offered_for_another_try(page: Page, gateway):
    job = gateway.jobs.open_receiving(study_instance_uid="1.2", series_instance_uid="1.2.3", calling_ae_title="CT")
    page.goto(f"{gateway.url}/#{job.id}")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#panel .verdict")).to_contain_text("Cancelled")
    expect(page.get_by_role("button", name="Try again")).to_have_count(0)


def test_parked_delivery_stands_out_and_is_sent_again_alone(page: Page, gateway, nifti):
    job_id = gateway.submit(nifti)
    gateway.finish(job_id, deliveries=tuple(Delivery("node:PACS", "x", "1.2", f"1.2.{number}") for number in range(3)))
    parked, also_parked, taken = gateway.outbox.of_job(job_id)
    gateway.outbox.park(parked, "PACS refused the object (0xC000)", Answer(0xC000, "<b>cannot understand</b>"))
    gateway.outbox.park(also_parked, "PACS refused the object (0xC000)")
    gateway.outbox.delivered(taken, Answer(0xB000))
    page.reload()
    page.get_by_role("button", name="Needs a look").click()
    expect(page.locator("#jobs tr")).to_contain_text("2 deliveries parked")
    page.goto(f"{gateway.url}/#{job_id}")
    sent = page.locator("#panel .delivery")
    expect(sent.nth(0)).to_contain_text("<b>cannot understand</b>")
    expect(sent.nth(2)).to_contain_text("data elements coerced")
    sent.nth(0).get_by_role("button", name="Send now").click()
    expect(sent.nth(0)).to_contain_text("pending")
    expect(page.locator("#panel .verdict")).to_contain_text("1 delivery parked")
    assert [row.state for row in gateway.outbox.of_job(job_id)] == ["pending", "parked", "delivered"]


def test_policy_of_the_page_lets_nothing_in_from_elsewhere(gateway):
    response = gateway.client.get("/")
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "http" not in policy
    assert gateway.client.get("/pages/worklist.js").headers["content-type"] == "text/javascript; charset=utf-8"


class TestLogin:
    def test_a_wrong_key_shows_nothing(self, browser: Browser, gateway, nifti):
        gateway.submit(nifti)
        page = browser.new_page()
        page.goto(gateway.url)
        log_in(page, "embolens_wrong")
        expect(page.locator("#login-message")).to_contain_text("not valid")
        expect(page.locator("#jobs tr")).to_have_count(0)
        page.close()

    def test_the_session_is_out_of_reach_of_scripts_and_other_sites(self, page: Page):
        expect(page.get_by_text("No studies yet")).to_be_visible()
        [cookie] = page.context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Strict", "/")
        assert page.evaluate("document.cookie") == ""

    def test_logging_out_ends_the_session_on_the_server(self, page: Page, gateway):
        expect(page.get_by_text("No studies yet")).to_be_visible()
        [cookie] = page.context.cookies()
        shown = {"Cookie": f"{cookie['name']}={cookie['value']}"}
        assert httpx.get(f"{gateway.url}/segment", headers=shown).status_code == 200
        page.get_by_role("button", name="Log out").click()
        expect(page.get_by_label("API key")).to_be_visible()
        assert httpx.get(f"{gateway.url}/segment", headers=shown).status_code == 401

    def test_a_revoked_key_logs_its_browser_out(self, page: Page, gateway):
        expect(page.get_by_text("No studies yet")).to_be_visible()
        [key] = gateway.keys.all()
        gateway.keys.revoke(key.id)
        expect(page.get_by_label("API key")).to_be_visible(timeout=10_000)
