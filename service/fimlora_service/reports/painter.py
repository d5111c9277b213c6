"""The process that draws: specifications and pictures come in as JSON, and leave as SVG and PNG.

The library runs a JavaScript engine and holds the interpreter's lock while it draws, so that
no thread of the service would answer meanwhile; and what runs wild in here can be ended.
"""

import base64
import json
import sys
from typing import Any

VEGA_LITE = "6.4"  # what a chart's $schema is about


def main() -> None:
    """Draw what stands on the standard input."""
    import vl_convert

    from fimlora_service.reports.smaller_png import smaller_png

    asked: dict[str, Any] = json.load(sys.stdin)
    charts = [
        # Nothing is fetched, whatever a specification names.
        vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE, allowed_base_urls=[])
        for spec in asked["charts"]
    ]
    pictures = [
        smaller_png(vl_convert.svg_to_png(each["svg"], scale=each["scale"]))
        for each in asked["pictures"]
    ]
    sent = [base64.b64encode(each).decode() for each in pictures]
    json.dump({"charts": charts, "pictures": sent}, sys.stdout)


if __name__ == "__main__":
    main()
