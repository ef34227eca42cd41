"""One HTML file from a template: everything that it needs is in it, and whatever a run says is escaped."""

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import vl_convert
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from experiments.leakage import OK
from experiments.package_data import data_file
from experiments.summary import NO_EVIDENCE, RECOGNISABLE_DB
from fl_sim.errors import printable_page
from fl_sim.files import write_atomically


def write_page(path: Path, template: str, **content: Any) -> Path:
    """Fill the template and put the page in the place of ``path``; returns ``path``."""
    environment = Environment(
        loader=FileSystemLoader(data_file("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "json_block": json_block}
    html = environment.get_template(template).render(
        recognisable=RECOGNISABLE_DB, ok=OK, no_evidence=NO_EVIDENCE, source=_source, vega=_vega, **content
    )
    write_atomically(path, lambda file: file.write_text(printable_page(html), encoding="utf-8"))
    return path


def json_block(value: Any) -> Markup:
    r"""``value`` as JSON that may stand in a ``script`` block: no character in it can end the block.

    >>> print(json_block(["</script>"]))
    ["\u003c/script\u003e"]
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def columns_and_rows(frame: pd.DataFrame) -> dict[str, Any]:
    """A table as JSON takes it: the names of the columns, and the rows; missing values are None, ∞ is "Infinity".

    >>> columns_and_rows(pd.DataFrame({"psnr": [1.5, math.inf, math.nan]}))
    {'columns': ['psnr'], 'rows': [[1.5], ['Infinity'], [None]]}
    """
    return {
        "columns": [str(column) for column in frame.columns],
        "rows": [list(map(_plain, row)) for row in frame.itertuples(index=False)],
    }


def _plain(value: Any) -> Any:
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value.item() if isinstance(value, np.generic) else value


def _number(value: Any, form: str = "{:.1f}") -> str:
    """A figure as text, a dash if there is none."""
    return "\N{EN DASH}" if value is None or pd.isna(value) else form.format(value)


@cache
def _source(name: str) -> Markup:
    """A style sheet or script beside the templates, as it is."""
    return Markup(data_file(f"templates/{name}").read_text(encoding="utf-8"))


@cache
def _vega() -> Markup:
    """Vega-Embed with Vega-Lite and Vega, the script that draws charts."""
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return Markup(script.replace("</script", "<\\/script"))
