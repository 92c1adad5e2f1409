"""Callbacks over HTTP, to a real server on loopback, which the tests allow."""

import asyncio
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiohttp import web
from standardwebhooks import WebhookVerificationError

from connectors.public_address import EVERYWHERE, PublicAddresses
from connectors.webhook.http import HttpWebhooks
from schemas.errors import GaveUp, HeadraceError, Isolated, Poison, TookTooLong
from tests.certificates import Authority
from tests.webhook_receiver import OTHER_SECRET, SECRET, Receiver, answering, names, on_loopback, receiving

BODY = '{"type":"job.completed","data":{"text":"Gefälle"}}'.encode()
PUBLIC = "93.184.215.14"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def post(
    url: str,
    *,
    tenant: str = "acme",
    secrets: dict[str, str] | None = None,
    addresses: PublicAddresses | None = None,
    timeout_s: float = 15.0,
) -> None:
    given = {"*": SECRET} if secrets is None else secrets
    webhooks = HttpWebhooks(given, addresses or on_loopback(), timeout_s=timeout_s)
    asyncio.run(webhooks.post(url, tenant=tenant, webhook_id="id-1", body=BODY))


def refused(url: str, addresses: PublicAddresses | None = None) -> HeadraceError:
    with pytest.raises(HeadraceError) as caught:
        post(url, addresses=addresses)
    return caught.value


def test_a_receiver_can_verify_what_it_gets(receiver: Receiver) -> None:
    post(receiver.url())
    (posted,) = receiver.posted
    assert posted.verified()["data"] == {"text": "Gefälle"}
    assert posted.body == BODY
    assert posted.headers["webhook-id"] == "id-1"
    assert abs(int(posted.headers["webhook-timestamp"]) - time.time()) < 60
    assert posted.headers["webhook-signature"].startswith("v1,")
    assert posted.headers["Content-Type"] == "application/json"


def test_each_tenant_has_its_own_secret_and_others_share_one(receiver: Receiver) -> None:
    secrets = {"acme": OTHER_SECRET, "*": SECRET}
    post(receiver.url(), tenant="acme", secrets=secrets)
    post(receiver.url(), tenant="somebody", secrets=secrets)
    of_acme, of_another = receiver.posted
    of_acme.verified(OTHER_SECRET)
    of_another.verified(SECRET)
    with pytest.raises(WebhookVerificationError):
        of_acme.verified(SECRET)


def test_while_a_secret_is_changed_receivers_may_know_the_old_or_the_new_one(receiver: Receiver) -> None:
    post(receiver.url(), secrets={"acme": f"{OTHER_SECRET} {SECRET}"})
    (posted,) = receiver.posted
    posted.verified(OTHER_SECRET)
    posted.verified(SECRET)


def test_without_a_secret_nothing_is_sent(receiver: Receiver) -> None:
    with pytest.raises(GaveUp, match=r"tenant acme .* HEADRACE_WEBHOOK_SECRETS"):
        post(receiver.url(), secrets={"another": SECRET})
    assert receiver.posted == []


@pytest.mark.parametrize("status", [200, 201, 204, 299])
def test_every_2xx_is_a_delivery(receiver: Receiver, status: int) -> None:
    receiver.answers["/hook"] = answering(status)
    post(receiver.url())


@pytest.mark.parametrize("status", [400, 401, 404, 408, 429, 500, 503])
def test_everything_else_may_work_later(receiver: Receiver, status: int) -> None:
    receiver.answers["/hook"] = answering(status)
    error = refused(receiver.url())
    assert isinstance(error, Isolated)
    assert f"answered {status}" in str(error)


def test_a_receiver_may_ask_for_time(receiver: Receiver) -> None:
    at = (datetime.now(UTC) + timedelta(seconds=500)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    receiver.answers = {"/n": answering(503, {"Retry-After": "77"}), "/d": answering(429, {"Retry-After": at})}
    in_seconds, as_date = refused(receiver.url("/n")), refused(receiver.url("/d"))
    assert isinstance(in_seconds, Isolated)
    assert in_seconds.retry_after_s == 77
    assert isinstance(as_date, Isolated)
    assert as_date.retry_after_s == pytest.approx(500, abs=30)


def test_gone_is_the_end(receiver: Receiver) -> None:
    receiver.answers["/hook"] = answering(410)
    assert isinstance(refused(receiver.url()), Poison)


def test_a_redirect_is_not_followed_wherever_it_leads(receiver: Receiver) -> None:
    for place in ("http://169.254.169.254/latest/", receiver.url("/elsewhere"), "https://example.org/"):
        receiver.answers["/hook"] = answering(307, {"Location": place})
        error = refused(receiver.url())
        assert isinstance(error, Isolated)
        assert "redirects are not followed" in str(error)
    assert {posted.path for posted in receiver.posted} == {"/hook"}


def test_a_receiver_that_hangs_is_left_in_time(receiver: Receiver) -> None:
    async def hang(_request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(60)
        return web.Response()

    receiver.answers["/hook"] = hang
    with pytest.raises(TookTooLong, match=r"within 0\.3 s"):
        post(receiver.url(), timeout_s=0.3)


def test_an_endless_answer_is_not_read(receiver: Receiver) -> None:
    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x" * 65_536)

    receiver.answers["/hook"] = drip
    post(receiver.url(), timeout_s=10.0)


def test_nobody_there_may_come_back() -> None:
    with receiving() as gone:
        url = gone.url()
    assert isinstance(refused(url), Isolated)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "10.0.0.1", "169.254.169.254", "[::1]", "[::ffff:7f00:1]"])
def test_addresses_that_are_not_public_are_refused(receiver: Receiver, host: str) -> None:
    addresses = PublicAddresses(look_up=names(["127.0.0.1"]))
    error = refused(receiver.url(host=host), addresses)
    assert isinstance(error, Poison)
    assert "not public" in str(error)
    assert receiver.posted == []


def test_a_name_that_leads_inside_now_and_then_never_gets_there(receiver: Receiver) -> None:
    """DNS rebinding: what was checked is what is connected to, and it is not looked up again."""
    inside = PublicAddresses(look_up=names([PUBLIC, "127.0.0.1"], ["127.0.0.1"]))
    for _ in range(2):
        assert "not public" in str(refused(receiver.url(), inside))
    assert receiver.posted == []


def test_private_addresses_may_be_allowed(receiver: Receiver) -> None:
    post(receiver.url(host="127.0.0.1"), addresses=PublicAddresses(EVERYWHERE))
    assert len(receiver.posted) == 1


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/hook",
        "ftp://example.org/hook",
        "file:///etc/passwd",
        "http://",
        "http://exa mple.org/",
        "http://0x7f000001/",
        "http://example.org\\@127.0.0.1/",
        "http://user:pass@hooks.example.org/",
    ],
)
def test_what_is_no_url_to_post_to_is_refused(url: str) -> None:
    assert isinstance(refused(url), Poison)


def test_errors_show_nothing_of_a_url_but_its_host(receiver: Receiver) -> None:
    receiver.answers["/T0/s3cret"] = answering(500)
    urls = [
        receiver.url("/T0/s3cret?token=s3cret#s3cret"),
        "http://me:s3cret@hooks.example.org/s3cret",
        "http://127.0.0.2:1/s3cret",
    ]
    for url in urls:
        assert "s3cret" not in str(refused(url))
    assert f"http://hooks.example.org:{receiver.port}" in str(refused(urls[0]))


def test_a_receiver_whose_certificate_proves_nothing_is_told_nothing(tmp_path: Path) -> None:
    told: list[bytes] = []
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(*Authority(tmp_path).sign("receiver", "hooks.example.org"))

    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        told.append(await reader.read(1))
        writer.close()

    async def scenario() -> None:
        async with await asyncio.start_server(receive, "127.0.0.1", 0, ssl=tls) as server:
            port = server.sockets[0].getsockname()[1]
            url = f"https://hooks.example.org:{port}/"
            await HttpWebhooks({"*": SECRET}, on_loopback()).post(url, tenant="acme", webhook_id="id-1", body=BODY)

    with pytest.raises(Isolated, match="certificate is not valid"):
        asyncio.run(scenario())
    assert told == []
