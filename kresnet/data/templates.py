"""The templates of pages that are one HTML file each: no script, no other file, no network."""

from __future__ import annotations

from collections.abc import Callable

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from kresnet.data.findings import printable


def template(package: str, name: str, **filters: Callable[..., object]) -> Template:
    """Return a template; what is put into it, as names of the data, is escaped.

    Args:
        package: Where it lies, as "kresnet.data".
        name: Of its file.
        **filters: What it uses beside `name`, `printable` and `share`.
    """
    environment = Environment(
        loader=PackageLoader(package, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["name"] = lambda text: Markup("<bdi>{}</bdi>").format(printable(text))
    environment.filters["printable"] = printable
    environment.filters["share"] = lambda value: "-" if value is None else f"{value:.1%}"
    environment.filters.update(filters)
    return environment.get_template(name)
