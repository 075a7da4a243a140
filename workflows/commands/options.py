"""Options that several commands have, and what they come to: a configuration, the address of a Ray cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from configs.runtime import stopping
from workflows.commands.output import note

if TYPE_CHECKING:  # importing it takes a second, which `--help` need not wait for
    from configs.schema import Config

Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        "-p",
        help="tiny (offline, CPU), wan2.1-fun-1.3b, or a YAML file that `extends` one. [default: tiny]",
        show_default=False,
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-s", metavar="KEY=VALUE", help="Override any configuration key; repeat as needed.", show_default=False
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address", help="Join this Ray cluster instead of starting Ray in this process.", show_default=False
    ),
]
Inline = Annotated[bool, typer.Option("--inline", help="Run everything in this process, for a debugger.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N.", show_default=False)]
Port = Annotated[int, typer.Option("--port", help="0 takes a free one.")]


@dataclass(frozen=True)
class GlobalOptions:
    """Options that were given before the name of the command."""

    preset: str | None
    overrides: tuple[str, ...]
    ray_address: str | None


def preset_name(ctx: typer.Context, preset: str | None) -> str | None:
    """The preset that was named, after the command or before it."""
    return preset or _global(ctx).preset


def overrides(ctx: typer.Context, given: list[str] | None) -> list[str]:
    """All ``--set``, those before the command first."""
    return [*_global(ctx).overrides, *(given or [])]


def load_config(ctx: typer.Context, preset: str | None, given: list[str] | None) -> Config:
    """The configuration of a command."""
    from configs import schema

    stopping.check()  # what a command imports before this takes seconds
    return schema.load(preset_name(ctx, preset) or "tiny", overrides(ctx, given), note)


def catalog_config(catalog: str, ctx: typer.Context, preset: str | None, given: list[str] | None) -> Config:
    """A catalog's own configuration, changed by ``--set``; ``--preset`` starts from that preset instead."""
    from pipeline.catalog.queries import configuration

    own = None if preset_name(ctx, preset) else configuration(catalog, overrides(ctx, given), note)
    return own or load_config(ctx, preset, given)


def cluster(ctx: typer.Context, address: str | None) -> str | None:
    """The address of the Ray cluster to join, checked; None: start Ray here."""
    from pipeline.engine.ray_session import check_address

    chosen = address or _global(ctx).ray_address
    if chosen:
        check_address(chosen)  # before anything is written
    return chosen


def _global(ctx: typer.Context) -> GlobalOptions:
    found = ctx.obj
    assert isinstance(found, GlobalOptions)
    return found
