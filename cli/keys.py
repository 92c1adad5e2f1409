"""`headrace keys`: keys for the gateway."""

import json

import click
from pydantic import TypeAdapter, ValidationError

from schemas.event import Tenant


class TenantName(click.ParamType[str]):
    """A tenant, or `*`."""

    name = "TENANT"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Refused if no event could name it."""
        text = str(value)
        try:
            return text if text == "*" else TypeAdapter[str](Tenant).validate_python(text)
        except ValidationError:
            self.fail(f"{text!r}: letters, digits and ._-, 64 at most, or * for a key that sees all", param, ctx)


@click.group()
def keys() -> None:
    """API keys of the gateway."""


@keys.command()
@click.argument("tenant", type=TenantName())
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def create(tenant: str, *, as_json: bool) -> None:
    """Make a key for TENANT, `*` for one that sees all. It is shown once: only its SHA-256 is configured."""
    from gateway.keys import digest_of, new_key

    key = new_key()
    entry = {digest_of(key): tenant}
    if as_json:
        click.echo(json.dumps({"key": key, "entry": entry}))
        return
    click.echo(
        f"{key}\n"
        "\n"
        "Give it to whoever calls; it is not shown again. Add this to the JSON object in HEADRACE_API_KEYS, or in the\n"
        "file that HEADRACE_API_KEYS_FILE names, and restart the gateway:\n"
        "\n"
        f"  {json.dumps(entry)}"
    )
