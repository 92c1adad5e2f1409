"""What tokens cost. Money is counted in 10^-12 of the currency, so that sums are exact."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

MONEY_UNITS = 10**12
"""Of one unit of the currency."""


@dataclass(frozen=True)
class Prices:
    """Price per million prompt and completion tokens, by model; `*` for all others."""

    by_model: Mapping[str, tuple[Decimal, Decimal]]

    def money(self, model: str | None, prompt_tokens: int, completion_tokens: int) -> int:
        """In 10^-12. A model that is not listed, or not known yet, costs what the dearest would."""
        if not self.by_model:
            return 0
        price = self.by_model.get(model or "", self.by_model.get("*"))
        listed = self.by_model.values() if price is None or model is None else (price,)
        return max(
            _units(prompt) * prompt_tokens + _units(completion) * completion_tokens for prompt, completion in listed
        )


def _units(price: Decimal) -> int:
    """Per token, of a price per million tokens with six decimals at most."""
    return int(price * (MONEY_UNITS // 10**6))
