"""Which endpoints answer: their settings, and the choice between a chain of them and none.

The SDK is imported only when a key is there: it is slow to import, and `check` never needs it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeAlias
from urllib.parse import urlsplit

import msgspec

from cloud_dispatcher.adapters.price_table import PriceTable, load_prices
from cloud_dispatcher.core.breaker import BreakerSettings
from cloud_dispatcher.core.commands import CompletionRequest
from cloud_dispatcher.ports import CompletionPart, CompletionProvider, ProviderError
from fleet_protocol.errors import ConfigError
from fleet_protocol.messages import EndpointView

Seconds: TypeAlias = Annotated[float, msgspec.Meta(gt=0, le=3_600)]

_NO_KEY = "none"  # the SDK insists on one

_SYSTEM_PROMPT = (
    "You answer short questions that small devices send. "
    "Be correct and brief; plain text, no markdown."
)


class BackoffSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Pauses between the attempts of one request: exponential, with full jitter.

    Attributes:
        attempts: Calls made at most of each endpoint, the first one included.
        first_s: Longest pause after the first attempt; it doubles with each one.
        cap_s: Longest pause ever, unless the provider asks for more.
    """

    attempts: Annotated[int, msgspec.Meta(ge=1, le=10)] = 3
    first_s: Seconds = 1.0
    cap_s: Seconds = 30.0

    def pause_ms(self, attempt: int, *, luck: float) -> int:
        """Return the pause after `attempt` (from 1); `luck` is uniform in 0..1."""
        return int(1_000 * luck * min(self.cap_s, self.first_s * 2 ** (attempt - 1)))


class ProviderSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An OpenAI-compatible provider.

    Attributes:
        name: For people and logs.
        base_url: Where `/chat/completions` is.
        model: Asked for; the answer's own word counts, a checkpoint behind a name can change.
        api_key_env: Environment variable that holds the key; empty, and no file: it needs none.
        api_key_file: File whose first line is the key; goes before the environment.
        connect_timeout_s: To open a connection.
        first_content_timeout_s: From sending to the first generated token, thinking included;
            keep-alives do not extend it. While another endpoint could go on, it is at most half of
            what is left until the deadline.
        idle_timeout_s: Longest silence on the wire; keep-alives do extend it.
        system_prompt: Goes first, byte for byte the same, so that the provider's cache hits.
        thinking: Let the model think before it answers: better, slower, dearer.
        thinking_tokens: Allowed on top of the job's `max_tokens` while thinking, which would
            otherwise use them up before the answer begins.
        account: Endpoints that name the same one share its limits, which are those of the first of
            them; None: an account of its own.
        max_concurrency: Calls at once; a 429 halves it, answers let it grow again.
        requests_per_s: Calls a second, after a burst.
        burst: Calls at once after a pause.
        tokens_per_min: Prompt and answer together; None: no limit.
        user_id: Isolates cache and safety verdicts; None: each tenant of `engine.budget.tenants`
            has its own.
        dialect: `deepseek` sends `thinking` and `user_id` and asks for the balance, `openai` sends
            nothing that is not in OpenAI's API; `auto`: as the model is called `deepseek-...`.
        balance_poll_s: How often an empty account is asked whether it was topped up.
        backoff: Between attempts; of a chain, its first endpoint's.
        breaker: When this endpoint is left alone.
    """

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] = "deepseek"
    base_url: str = "https://api.deepseek.com"
    model: Annotated[str, msgspec.Meta(min_length=1)] = "deepseek-flash"
    api_key_env: str = "DEEPSEEK_API_KEY"
    api_key_file: str | None = None
    connect_timeout_s: Seconds = 10.0
    first_content_timeout_s: Seconds = 60.0
    idle_timeout_s: Seconds = 30.0
    system_prompt: str = _SYSTEM_PROMPT
    thinking: bool = False
    thinking_tokens: Annotated[int, msgspec.Meta(ge=0, le=65_536)] = 4_096
    max_concurrency: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 64
    account: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] | None = None
    requests_per_s: Annotated[float, msgspec.Meta(gt=0, le=10_000)] = 10.0
    burst: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 10
    tokens_per_min: Annotated[int, msgspec.Meta(ge=1)] | None = None
    user_id: str | None = None
    dialect: Literal["auto", "deepseek", "openai"] = "auto"
    balance_poll_s: Annotated[float, msgspec.Meta(ge=1, le=86_400)] = 300.0
    backoff: BackoffSettings = BackoffSettings()
    breaker: BreakerSettings = BreakerSettings()

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("provider base_url is not http://HOST or https://HOST")
        if parts.password is not None:
            raise ValueError("provider base_url holds a password; use api_key_env or api_key_file")

    @property
    def speaks_deepseek(self) -> bool:
        """Whether it understands what only DeepSeek's own API does."""
        if self.dialect != "auto":
            return self.dialect == "deepseek"
        # `deepseek-ai/...` is a checkpoint that somebody else serves.
        return self.model.startswith("deepseek-") and "/" not in self.model

    @property
    def account_name(self) -> str:
        """What its limits are kept under."""
        return self.account or self.name

    @property
    def needs_key(self) -> bool:
        """Whether it is left out without one; a server of one's own often wants none."""
        return bool(self.api_key_env) or self.api_key_file is not None


class CloudSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What holds for the whole chain.

    Attributes:
        share_calls: The same question from several devices at once is one call.
        hedge_after_ms: An endpoint that is silent for so long gets company: the next one is asked,
            too, and the first to speak answers. Costs up to twice; 0: never.
        prices_file: TOML with further `[[price]]` and `[[peak]]` rows, for models that the package
            knows no price of, or prices that changed. What has no price costs nothing.
    """

    share_calls: bool = True
    hedge_after_ms: Annotated[int, msgspec.Meta(ge=0, le=600_000)] = 0
    prices_file: str | None = None

    def prices(self) -> PriceTable:
        """Read the package's prices and one's own; raises ConfigError."""
        path = None if self.prices_file is None else Path(self.prices_file).expanduser()
        return load_prices(path)


class NoProvider:
    """Stands in while no key is set: says so, at once, to every call."""

    def __init__(self, settings: ProviderSettings) -> None:
        self._key_env = settings.api_key_env

    @property
    def name(self) -> str:
        """Say that there is none."""
        return "none"

    @property
    def endpoints(self) -> tuple[EndpointView, ...]:
        """None."""
        return ()

    async def stream(self, request: CompletionRequest) -> AsyncIterator[CompletionPart]:
        """Refuse.

        Raises:
            ProviderError: `no_provider`.
        """
        if request:  # keeps this a generator: the refusal comes on iteration, as from all others
            raise ProviderError(
                "no cloud provider is set up",
                code="no_provider",
                hint=f"set {self._key_env}, or api_key_file in the provider's settings",
            )
        yield ""

    async def close(self) -> None:
        """Nothing to release."""


def build_provider(
    settings: ProviderSettings | None,
    environ: Mapping[str, str],
    *,
    backups: Sequence[ProviderSettings] = (),
    cloud: CloudSettings | None = None,
) -> CompletionProvider:
    """Return the chain of all endpoints that have their key, or `NoProvider` where none has.

    Raises:
        ConfigError: A key file or the prices cannot be read, a key is not one, or two endpoints
            have one name.
    """
    first = settings or ProviderSettings()
    wanted = (first, *backups)
    names = [each.name for each in wanted]
    if len(set(names)) < len(names):
        raise ConfigError(
            f"two endpoints of the cloud lane have one name: {', '.join(names)}",
            hint="give each [[backup]] a name of its own",
        )
    keys = [(each, _find_key(each, environ)) for each in wanted]
    found = [(each, key) for each, key in keys if key or not each.needs_key]
    if not found:
        return NoProvider(first)
    # Imported here: one and a half seconds that a dispatcher without a key never pays.
    from cloud_dispatcher.adapters.deepseek import DeepSeekProvider  # noqa: PLC0415 - see above
    from cloud_dispatcher.adapters.provider_chain import ProviderChain  # noqa: PLC0415 - see above
    from cloud_dispatcher.adapters.shared_calls import SharedCalls  # noqa: PLC0415 - see above

    cloud = cloud or CloudSettings()
    prices = cloud.prices()
    chain = ProviderChain(
        [DeepSeekProvider(each, key or _NO_KEY, prices=prices) for each, key in found],
        hedge_after_ms=cloud.hedge_after_ms,
    )
    return SharedCalls(chain) if cloud.share_calls else chain


def _find_key(settings: ProviderSettings, environ: Mapping[str, str]) -> str:
    if settings.api_key_file is None:
        key, origin = environ.get(settings.api_key_env, "").strip(), settings.api_key_env
    else:
        key, origin = _read_key(settings.api_key_file), settings.api_key_file
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError(
            f"{origin} holds something that is not an API key",
            hint="it must be one word of plain ASCII; copy it again from the provider's page",
        )
    return key


def _read_key(path: str) -> str:
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"api_key_file {path} cannot be read ({type(error).__name__})",
            hint="correct the path or its permissions, or remove the setting",
        ) from error
    if not lines[0].strip():
        raise ConfigError(f"api_key_file {path} is empty", hint="put the key on its first line")
    return lines[0].strip()
