"""Options that several commands take."""

from typing import Annotated

import typer

Overrides = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a setting; may be repeated.", rich_help_panel="What to run"
    ),
]
