"""Every setting, read from `HEADRACE_*` environment variables. Only `cli` reads them; everything below gets values."""

import json
import os
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from connectors.cluster import MOST_PROCESSES
from connectors.webhook.signature import secrets_of
from schemas.budgets import Budget
from schemas.notifications import BucketScope

PREFIX = "HEADRACE_"

POSTGRES_URLS = ("postgresql://", "postgres://")
"""How a HEADRACE_LEDGER begins that is no file."""

KAFKA_VARIABLES = {
    "security.protocol": "HEADRACE_KAFKA_SECURITY",
    "sasl.mechanism": "HEADRACE_KAFKA_SASL_MECHANISM",
    "sasl.username": "HEADRACE_KAFKA_USERNAME",
    "sasl.password": "HEADRACE_KAFKA_PASSWORD",
    "ssl.ca.location": "HEADRACE_KAFKA_CA",
    "ssl.certificate.location": "HEADRACE_KAFKA_CERT",
    "ssl.key.location": "HEADRACE_KAFKA_KEY",
    "ssl.key.password": "HEADRACE_KAFKA_KEY_PASSWORD",
}
"""By librdkafka's name. What else it knows, HEADRACE_KAFKA_OPTIONS says."""

CommaSeparated = Annotated[tuple[str, ...], NoDecode]


class Settings(BaseSettings):
    """What a process needs to know. A variable is the field's name in capitals after `HEADRACE_`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", env_ignore_empty=True)

    kafka_bootstrap: str | None = Field(default=None, description="Brokers, `host:port[,host:port]`.")
    kafka_security: Literal["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"] | None = Field(
        default=None,
        description="How to connect to the brokers: `plaintext`, the default, `ssl`, `sasl_plaintext` or `sasl_ssl`.",
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        default="SCRAM-SHA-512",
        description="How the password is proven: `PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`; others by KAFKA_OPTIONS.",
    )
    kafka_username: str | None = Field(default=None, description="User of SASL.")
    kafka_password: SecretStr | None = Field(default=None, description="Password of that user.")
    kafka_ca: Path | None = Field(
        default=None,
        description="PEM file of the authorities that sign the brokers' certificates; default: the system's.",
    )
    kafka_cert: Path | None = Field(
        default=None, description="PEM file of our own certificate, where brokers ask for one, with its chain."
    )
    kafka_key: Path | None = Field(default=None, description="PEM file of its private key.")
    kafka_key_password: SecretStr | None = Field(default=None, description="Password of that file, if it has one.")
    kafka_options: dict[str, str] = Field(
        default_factory=dict,
        description='More librdkafka settings as JSON: `{"socket.keepalive.enable": "true"}`; none that a variable of '
        "its own says.",
    )
    group_prefix: str = Field(
        default="headrace", description="Consumer groups are `<prefix>.<flow>`; they show lag and hold no truth."
    )
    data_dir: Path = Field(default=Path(".headrace"), description="Local state: recovery, index, objects.")
    recovery_dir: Path | None = Field(
        default=None, description="Snapshots of the flows, one directory each; default: `<data_dir>/recovery`."
    )
    epoch_s: float = Field(
        default=1.0, ge=0.1, le=60, description="Seconds between snapshots; what a crash repeats, at most."
    )
    workers: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Worker threads of each flow; may be changed at a restart. Slow work needs no more than one.",
    )
    cluster: CommaSeparated = Field(
        default=(),
        description="Addresses, `host:port`, comma-separated, of all processes that run a flow together, in order; the "
        "same list in each. What goes between them is unauthenticated: let nobody else reach them.",
    )
    cluster_process: int = Field(default=0, ge=0, description="Which one of HEADRACE_CLUSTER this process is, from 0.")
    slices: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="Into how many processes that share nothing a flow is cut. It stays for the life of their state.",
    )
    slice: int = Field(default=0, ge=0, description="Which one of HEADRACE_SLICES this process is, from 0.")
    drain_s: float = Field(default=20.0, ge=0, le=3600, description="Seconds that pending work gets after SIGTERM.")
    object_store: str | None = Field(
        default=None, description="URL of the claim-check store (`s3://bucket/prefix`); default: `<data_dir>/objects`."
    )
    file_roots: CommaSeparated = Field(
        default=(),
        description="Directories, comma-separated or a JSON array, readable by `file:` URI; none by default.",
    )
    store_protocols: CommaSeparated = Field(
        default=(), description="fsspec protocols, comma-separated, that document URIs may use besides `file`: `s3`."
    )
    http_hosts: CommaSeparated = Field(
        default=(),
        description="Hosts, comma-separated, whose http(s) URIs documents may name; `*` for any public host, "
        "`*.example.org` for its subdomains; none by default.",
    )
    buckets: dict[str, BucketScope] = Field(
        default_factory=dict,
        description="Whose documents the buckets hold that send notifications, as JSON: "
        '`{"bucket": {"tenant": "acme", "collection": "documents"}}`; default: all are tenant `default`\'s.',
    )
    max_document_bytes: int = Field(default=50_000_000, ge=1, description="Largest document read, in bytes.")
    parser_processes: int = Field(default=2, ge=1, le=256, description="Processes that parse documents.")
    parser_memory_bytes: int = Field(
        default=2_147_483_648, ge=268_435_456, description="Memory limit of each parser process, in bytes."
    )
    chunk_tokens: int = Field(default=200, ge=16, description="Chunk size in tokens; at most the model's window.")
    chunk_overlap_tokens: int = Field(default=30, ge=0, description="Tokens that neighbouring chunks share.")
    embed_model: str = Field(
        default="all-MiniLM-L6-v2", description="sentence-transformers model: a name or a directory."
    )
    embed_models: CommaSeparated = Field(
        default=(),
        description="More models, comma-separated: of collections that another one serves, or is to serve.",
    )
    embed_precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="Of the model's forward pass; `auto` is the fastest that the hardware does well."
    )
    embed_cache_bytes: int = Field(
        default=2_000_000_000,
        ge=0,
        description="Size of `<data_dir>/embeddings.sqlite`, the vectors of texts embedded before; 0: none.",
    )
    qdrant_url: str | None = Field(
        default=None,
        description="Qdrant server, `http://host:6333`; default: the embedded index in `<data_dir>/vectors`.",
    )
    qdrant_api_key: SecretStr | None = Field(default=None, description="Key of the Qdrant server.")
    qdrant_ca: Path | None = Field(
        default=None, description="PEM file of the authorities that sign its certificate; default: the system's."
    )
    llm_url: str | None = Field(
        default=None,
        description="OpenAI-compatible endpoint, `http://host:8000/v1`; default: the built-in extractive answerer.",
    )
    llm_model: str | None = Field(default=None, description="Model name sent to the endpoint; needed with LLM_URL.")
    llm_api_key: SecretStr | None = Field(default=None, description="Key of the endpoint.")
    llm_ca: Path | None = Field(
        default=None, description="PEM file of the authorities that sign its certificate; default: the system's."
    )
    infer_capacity: int = Field(default=256, ge=1, le=10_000, description="Inferences in flight per process.")
    infer_timeout_s: float = Field(default=120.0, gt=0, le=3600, description="Seconds per attempt of an inference.")
    ledger: str | None = Field(
        default=None,
        description="Where paid calls are recorded: a file (SQLite, for one node), a `postgresql://` URL, or `off`; "
        "default: `<data_dir>/ledger.sqlite`.",
    )
    ledger_password: SecretStr | None = Field(default=None, description="Password for a PostgreSQL ledger.")
    ledger_days: float = Field(
        default=7.0, gt=0, le=3650, description="Days for which a repeated request gets its stored answer."
    )
    ambiguous: Literal["retry", "dead_letter"] = Field(
        default="retry",
        description="What becomes of a request whose call a crash interrupted, and which may have been billed.",
    )
    ambiguous_tenants: dict[str, Literal["retry", "dead_letter"]] = Field(
        default_factory=dict, description='Tenants that want it otherwise, as JSON: `{"acme": "dead_letter"}`.'
    )
    budget: Budget | None = Field(
        default=None,
        description="Budget of tenants without one, as JSON: "
        '`{"windows": [{"seconds": 60, "tokens": 100000}], "policy": "defer"}`; default: no limit.',
    )
    prices: dict[str, tuple[Decimal, Decimal]] = Field(
        default_factory=dict,
        description="Price of a million prompt and completion tokens by model, as JSON, `*` for all others: "
        '`{"*": ["0.15", "0.6"]}`.',
    )
    guard_depth: int = Field(default=8, ge=1, description="Inferences one after the other under one root job.")
    guard_age_s: int = Field(default=86_400, ge=1, description="Seconds from a root job to the last one under it.")
    guard_jobs: int = Field(default=100, ge=1, description="Jobs under one root job.")
    guard_tokens: int = Field(default=1_000_000, ge=1, description="Tokens used under one root job.")
    guard_repeats: int = Field(default=3, ge=1, description="How often the same is asked under one root job.")
    guard_prompt_chars: int = Field(default=50_000, ge=1, description="Characters of one prompt, with its tools.")
    review_days: float = Field(default=7.0, gt=0, le=365, description="Days until an undecided review ends its job.")
    gateway_host: str = Field(default="127.0.0.1", description="Address that the gateway listens at.")
    gateway_port: int = Field(default=8080, ge=0, le=65_535, description="Port of the gateway; 0: any free one.")
    read_model: Path | None = Field(
        default=None,
        description="SQLite file of a gateway, made anew from Kafka where it is missing; default: "
        "`<data_dir>/read_model.sqlite`.",
    )
    api_keys: dict[str, str] = Field(
        default_factory=dict,
        description="Who may use the gateway, as JSON: SHA-256 of a key (`headrace keys create` makes both) to its "
        'tenant, `*` for one that sees all: `{"<sha256>": "acme"}`. Without any, the gateway serves loopback alone, '
        "and asks for none.",
    )
    api_keys_file: Path | None = Field(default=None, description="The same from a JSON file, read at the start.")
    rate_per_s: float = Field(default=50.0, gt=0, description="Requests per second and API key, on average.")
    rate_burst: int = Field(default=200, ge=1, description="Requests that a key may make at once.")
    cors_origins: CommaSeparated = Field(
        default=(), description="Origins, comma-separated, whose pages may call the gateway; none by default."
    )
    webhook_secrets: dict[str, SecretStr] = Field(
        default_factory=dict,
        description="What callbacks are signed with, by tenant, `*` for all others, as JSON: "
        '`{"acme": "whsec_<base64>"}` (Standard Webhooks); several secrets, separated by spaces, sign each callback.',
    )
    webhook_private: bool = Field(default=False, description="Callbacks may go to addresses that are not public.")
    metrics_port: int | None = Field(
        default=None,
        ge=1,
        le=65_535,
        description="Port of `/metrics`, on all interfaces, and of a flow's probes `/livez` and `/readyz`; none by "
        "default.",
    )
    stall_s: float = Field(
        default=180.0,
        gt=0,
        le=86_400,
        description="Seconds without the end of an epoch after which `/livez` fails; more than the 125 in which a flow "
        "waits for its brokers, and then stops by itself.",
    )
    log_content: bool = Field(
        default=False,
        description="Also log the prompt and the answer of each call of a model, at level `debug`, shortened.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severity logged."
    )

    @field_validator(
        "cluster", "embed_models", "file_roots", "store_protocols", "http_hosts", "cors_origins", mode="before"
    )
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        if value.startswith("["):  # a JSON array, for values that hold a comma
            return json.loads(value)  # what is no JSON is a ValueError, which pydantic reports with the variable
        return tuple(part.strip() for part in value.split(",") if part.strip())

    @field_validator("cluster")
    @classmethod
    def _addresses(cls, addresses: tuple[str, ...]) -> tuple[str, ...]:
        for address in addresses:
            host, _, port = address.rpartition(":")
            if not host or not port.isdecimal() or int(port) not in range(1, 65_536):
                raise ValueError(f"{address} is no address; each is host:port")
        return addresses

    @field_validator("kafka_security", "kafka_sasl_mechanism", mode="before")
    @classmethod
    def _as_kafka_spells_it(cls, value: object, info: ValidationInfo) -> object:
        if not isinstance(value, str):
            return value
        return value.lower() if info.field_name == "kafka_security" else value.upper()

    def kafka_config(self) -> dict[str, str]:
        """What every Kafka client is given besides the brokers, in librdkafka's names. Holds the passwords.

        Raises ValueError, naming the variable, if something is missing, useless or said twice.
        """
        options = self.kafka_options
        security = self.kafka_security or options.get("security.protocol", "plaintext").lower()
        mechanism = self.kafka_sasl_mechanism if self._says_mechanism() else None
        said = {
            "security.protocol": self.kafka_security,
            "sasl.mechanism": mechanism,
            "sasl.username": self.kafka_username,
            "sasl.password": _shown(self.kafka_password),
            "ssl.ca.location": self.kafka_ca,
            "ssl.certificate.location": self.kafka_cert,
            "ssl.key.location": self.kafka_key,
            "ssl.key.password": _shown(self.kafka_key_password),
        }
        own = {name: str(value) for name, value in said.items() if value is not None}
        for name in own:
            if name in options or (name == "sasl.mechanism" and "sasl.mechanisms" in options):
                raise ValueError(
                    f"{name} is in HEADRACE_KAFKA_OPTIONS, and {KAFKA_VARIABLES[name]} says it: leave out one"
                )
            part = name.partition(".")[0]
            if part in {"sasl", "ssl"} and part not in security:
                ways = "ssl or sasl_ssl" if part == "ssl" else "sasl_ssl"
                raise ValueError(
                    f"{KAFKA_VARIABLES[name]} does nothing with HEADRACE_KAFKA_SECURITY={security}: make that {ways}"
                )
        config = {**options, **own}
        needs = {"ssl.certificate.location": ["ssl.key.location"], "ssl.key.location": ["ssl.certificate.location"]}
        if mechanism is not None:
            needs["sasl.mechanism"] = ["sasl.username", "sasl.password"]
        for name, others in needs.items():
            for other in others:
                if name in config and other not in config:
                    by = f"HEADRACE_KAFKA_SECURITY={security}" if name == "sasl.mechanism" else KAFKA_VARIABLES[name]
                    raise ValueError(f"{KAFKA_VARIABLES[other]} is missing: {by} needs it")
        return config

    def _says_mechanism(self) -> bool:
        if "kafka_sasl_mechanism" in self.model_fields_set:
            return True
        wanted = self.kafka_username is not None or (self.kafka_security or "").startswith("sasl")
        return wanted and not {"sasl.mechanism", "sasl.mechanisms"} & self.kafka_options.keys()

    @field_validator("kafka_ca", "kafka_cert", "kafka_key", "qdrant_ca", "llm_ca")
    @classmethod
    def _readable(cls, file: Path | None) -> Path | None:
        if file is not None:
            try:
                file.open("rb").close()
            except OSError as error:
                raise ValueError(f"it cannot be read: {error.strerror}") from None
        return file

    @model_validator(mode="after")
    def _placed(self) -> Self:
        if len(self.cluster) > MOST_PROCESSES:
            raise ValueError(
                f"HEADRACE_CLUSTER lists {len(self.cluster)} processes: at most {MOST_PROCESSES}; use HEADRACE_SLICES"
            )
        if self.cluster_process >= max(len(self.cluster), 1):
            raise ValueError(
                f"HEADRACE_CLUSTER_PROCESS={self.cluster_process}: HEADRACE_CLUSTER lists {len(self.cluster)} "
                "processes, counted from 0"
            )
        if len(set(self.cluster)) != len(self.cluster):
            raise ValueError("HEADRACE_CLUSTER: an address is listed twice")
        if self.slice >= self.slices:
            raise ValueError(f"HEADRACE_SLICE={self.slice}: must be less than HEADRACE_SLICES={self.slices}")
        if self.slices > 1 and len(self.cluster) > 1:
            raise ValueError("HEADRACE_SLICES: a process of a cluster shares its work, a slice does not; unset one")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self.kafka_config()  # says what is missing
        if self.llm_url is not None and self.llm_model is None:
            raise ValueError("HEADRACE_LLM_MODEL is missing: HEADRACE_LLM_URL needs the name of a model")
        if self.ledger is not None and "://" in self.ledger and not self.ledger.startswith(POSTGRES_URLS):
            scheme = self.ledger.partition("://")[0]
            raise ValueError(f"HEADRACE_LEDGER: {scheme}:// is no ledger; name a file, a postgresql:// URL, or `off`")
        if self.chunk_overlap_tokens * 2 > self.chunk_tokens:
            raise ValueError(
                f"HEADRACE_CHUNK_OVERLAP_TOKENS={self.chunk_overlap_tokens}: must be at most half of "
                f"HEADRACE_CHUNK_TOKENS={self.chunk_tokens}"
            )
        if self.stall_s < 2 * self.epoch_s:
            raise ValueError(
                f"HEADRACE_STALL_S={self.stall_s:g}: must be at least twice HEADRACE_EPOCH_S={self.epoch_s:g}"
            )
        if any(window.money is not None for window in (self.budget or Budget()).windows) and not self.prices:
            raise ValueError("HEADRACE_BUDGET is in money: HEADRACE_PRICES must say what tokens cost")
        return self

    @field_validator("webhook_secrets")
    @classmethod
    def _signing(cls, secrets: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for tenant, secret in secrets.items():
            try:
                secrets_of(secret.get_secret_value())
            except ValueError as error:
                raise ValueError(f"the secret of {tenant} {error}") from None
        return secrets

    @field_validator("prices")
    @classmethod
    def _countable(cls, prices: dict[str, tuple[Decimal, Decimal]]) -> dict[str, tuple[Decimal, Decimal]]:
        for model, pair in prices.items():
            if any(not price.is_finite() or price < 0 or price != round(price, 6) for price in pair):
                raise ValueError(f"a price of {model} is negative, or has more than six decimals")
        return prices

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment, and the files that it names."""
        del dotenv_settings, file_secret_settings
        return init_settings, env_settings, _Files(settings_cls)


class _Files(EnvSettingsSource):
    """`HEADRACE_X_FILE` names a file that holds what `HEADRACE_X` would: how secrets are mounted into containers."""

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls)
        self.env_vars = {
            f"{PREFIX}{field}".lower(): _content(variable, path)
            for field in settings_cls.model_fields
            if f"{field}_file" not in settings_cls.model_fields  # which has a meaning of its own
            for variable, path in [_named_file(field)]
            if path
        }


def _named_file(field: str) -> tuple[str, str | None]:
    """The variable that may name the file of a setting, and the path that it has."""
    name = f"{PREFIX}{field.upper()}"
    path = os.environ.get(f"{name}_FILE")
    if path and os.environ.get(name):
        raise ValueError(f"{name} and {name}_FILE are both set: leave out one")
    return f"{name}_FILE", path


def _content(variable: str, path: str) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
    except OSError as error:
        raise ValueError(f"{variable}={path}: it cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{variable}={path}: it is no text in UTF-8") from None
    if not text:
        raise ValueError(f"{variable}={path}: it is empty")
    return text


def _shown(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


def load() -> Settings:
    """The settings of this process. Raises ValueError with one line that names the variable, never a secret's value."""
    try:
        return Settings()
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        if not fault["loc"]:
            raise ValueError(fault["msg"].removeprefix("Value error, ")) from None
        name, hidden = _source(str(fault["loc"][0]))
        shown = "" if hidden else f"={fault['input']!r:.200}"
        raise ValueError(f"{name}{shown}: {fault['msg'].removeprefix('Value error, ')}") from None
    except SettingsError as error:  # a value that should be JSON and is not; its message names the field
        name, _ = _source(str(error).split('"')[1] if '"' in str(error) else "?")
        raise ValueError(f'{name}: not JSON, as in {{"name": "value"}}') from None


def _source(field: str) -> tuple[str, bool]:
    """The variable that a setting came from, and whether its value must not be shown."""
    variable, path = _named_file(field)
    secret = any(word in field for word in ("api_key", "password", "ledger", "secret", "options"))
    return (variable if path else f"{PREFIX}{field.upper()}"), secret or bool(path)


def settings_table() -> str:
    """Every setting as a Markdown table."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        shown = "" if default in (None, (), {}) else f"`{default}`"
        rows.append(f"| `{PREFIX}{name.upper()}` | {shown} | {field.description} |")
    return "\n".join(rows) + "\n"
