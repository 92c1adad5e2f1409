"""S3 by s3fs, as `HEADRACE_STORE_PROTOCOLS=s3` reads it, against a server that speaks it over HTTP."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

import boto3  # type: ignore[import-untyped]  # it publishes no types
import fsspec  # type: ignore[import-untyped]  # it publishes no types
import pytest
from moto.core import enable_iam_authentication
from moto.server import ThreadedMotoServer

from connectors.object_store import ObjectStore
from operators.notified import upload_of
from schemas.errors import Fatal, Poison, Retryable
from schemas.notifications import ObjectNotified
from tests.operators.test_notified import entry

LIMIT = 1_000_000


@dataclass(frozen=True)
class Bucket:
    """The bucket `docs`, as its owner sees it."""

    filesystem: fsspec.AbstractFileSystem

    def put(self, key: str, data: bytes) -> None:
        self.filesystem.call_s3("put_object", Bucket="docs", Key=key, Body=data)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def as_configured(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    """Set what a process is started with. fsspec keeps a client for good: another environment needs another one."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture(autouse=True)
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    as_configured(
        monkeypatch,
        AWS_ENDPOINT_URL=endpoint,
        AWS_ACCESS_KEY_ID="key",
        AWS_SECRET_ACCESS_KEY="secret",  # noqa: S106  # of nobody
        AWS_DEFAULT_REGION="us-east-1",
        AWS_MAX_ATTEMPTS="1",  # botocore's own, with seconds in between
        AWS_CONFIG_FILE="/nonexistent",
        AWS_SHARED_CREDENTIALS_FILE="/nonexistent",
        AWS_EC2_METADATA_DISABLED="true",
    )
    filesystem = fsspec.filesystem("s3")
    if not filesystem.exists("docs"):
        filesystem.mkdir("docs")
    yield Bucket(filesystem)
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture
def store() -> ObjectStore:
    return ObjectStore("s3://docs/claims", protocols=("s3",))


def read(store: ObjectStore, uri: str, max_bytes: int = LIMIT) -> bytes:
    return asyncio.run(store.read(uri, max_bytes=max_bytes))


def write(store: ObjectStore, key: str, data: bytes) -> str:
    return asyncio.run(store.write(key, data))


@pytest.mark.parametrize(
    "key",
    [
        *("a.txt", "with space.txt", "größe/straße.txt", "what?.txt", "no#.txt", "50%.txt", "%41", "a+b", "a//b", "/a"),
        *("a[1]*.txt", "./a", "a\\b", "~", "a..b"),
    ],
)
def test_object_is_read_by_its_key_as_it_is_and_by_its_notification(
    bucket: Bucket, store: ObjectStore, key: str
) -> None:
    bucket.put(key, key.encode())
    assert read(store, f"s3://docs/{key}") == key.encode()
    uploaded = upload_of(ObjectNotified.model_validate(entry(key.replace("%", "%25").replace("+", "%2B"))), {})
    assert uploaded is not None
    assert read(store, uploaded.uri or "") == key.encode()


def test_empty_object_is_no_bytes(bucket: Bucket, store: ObjectStore) -> None:
    bucket.put("empty", b"")
    assert read(store, "s3://docs/empty") == b""


def test_object_of_exactly_the_limit_is_read_and_one_more_byte_is_poison(bucket: Bucket, store: ObjectStore) -> None:
    bucket.put("limit", b"x" * 1000)
    assert len(read(store, "s3://docs/limit", max_bytes=1000)) == 1000
    with pytest.raises(Poison, match="has 1000 bytes; the limit is 999"):
        read(store, "s3://docs/limit", max_bytes=999)


@pytest.mark.parametrize("uri", ["s3://docs/gone", "s3://nobodys-bucket/a", "s3://docs", "s3://docs/folder", "s3:///a"])
def test_what_is_no_object_is_poison(bucket: Bucket, store: ObjectStore, uri: str) -> None:
    bucket.put("folder/a", b"")
    with pytest.raises(Poison, match=r"does not exist|directory"):
        read(store, uri)


@pytest.mark.parametrize("uri", ["s3:docs/a", "s3://no bucket!/a", "s3:a"])
def test_what_is_no_address_is_poison(store: ObjectStore, uri: str) -> None:
    with pytest.raises(Poison, match="no address"):
        read(store, uri)


def test_claim_check_is_read_back_by_its_uri_and_may_be_written_again(store: ObjectStore) -> None:
    for data in (b"first", b"second", b""):
        uri = write(store, "texts/ab/a.txt", data)
        assert uri == "s3://docs/claims/texts/ab/a.txt"
        assert read(store, uri) == data


def test_object_written_in_parts_is_read_back_as_a_whole(bucket: Bucket, store: ObjectStore) -> None:
    async def written() -> str:
        async with store.writing() as writer:
            await writer.write(b"one ")
            await writer.write(b"two")
            assert bucket.filesystem.find("docs/claims/uploads") == []
            return await writer.finish("uploads/acme/a.txt")

    assert read(store, asyncio.run(written())) == b"one two"


def test_base_alone_opens_no_other_object_of_its_bucket(bucket: Bucket) -> None:
    bucket.put("secret", b"secret")
    store = ObjectStore("s3://docs/claims")
    with pytest.raises(Poison, match="HEADRACE_STORE_PROTOCOLS"):
        read(store, "s3://docs/secret")
    assert read(store, write(store, "a", b"content")) == b"content"


def test_base_in_a_bucket_that_is_not_there_is_fatal_and_names_its_setting() -> None:
    with pytest.raises(Fatal, match="HEADRACE_OBJECT_STORE"):
        write(ObjectStore("s3://nobodys-bucket/claims"), "a", b"content")


def test_wrong_credentials_are_fatal_and_not_the_documents_fault(bucket: Bucket, store: ObjectStore) -> None:
    bucket.put("a", b"content")
    with enable_iam_authentication():
        with pytest.raises(Fatal, match=r"InvalidAccessKeyId.*AWS_ACCESS_KEY_ID"):
            read(store, "s3://docs/a")
        with pytest.raises(Fatal, match=r"InvalidAccessKeyId.*AWS_ACCESS_KEY_ID"):
            write(store, "a", b"content")


def test_object_that_is_denied_to_valid_credentials_is_poison(
    bucket: Bucket, store: ObjectStore, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("private", b"content")
    iam = boto3.client("iam", endpoint_url=endpoint)
    iam.create_user(UserName="reader")
    key = iam.create_access_key(UserName="reader")["AccessKey"]
    iam.close()
    as_configured(monkeypatch, AWS_ACCESS_KEY_ID=key["AccessKeyId"], AWS_SECRET_ACCESS_KEY=key["SecretAccessKey"])
    with enable_iam_authentication(), pytest.raises(Poison, match="permission denied"):
        read(store, "s3://docs/private")


def test_no_credentials_at_all_are_fatal(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    as_configured(monkeypatch)
    with pytest.raises(Fatal, match=r"NoCredentialsError.*AWS_ACCESS_KEY_ID"):
        read(store, "s3://docs/a")


def test_server_that_is_gone_is_retryable(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    as_configured(monkeypatch, AWS_ENDPOINT_URL="http://127.0.0.1:9")
    with pytest.raises(Retryable):
        read(store, "s3://docs/a")
    with pytest.raises(Retryable):
        write(store, "a", b"content")
