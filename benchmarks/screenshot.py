"""A picture of a page: light, dark or in part, as a browser draws it.

Needs playwright and a Chromium of this machine; nothing is downloaded.

Example: python benchmarks/screenshot.py runs/ladder/index.html reports/ladder.png
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path


def screenshot(page: Path, picture: Path, size: tuple[int, int], view: str, dark: bool) -> None:
    """Open a page file and write what is seen of it as PNG.

    Args:
        page: an HTML file.
        picture: where.
        size: width and height of the window.
        view: what follows # in the address.
        dark: in dark colours.

    Raises:
        SystemExit: no page, no Chromium, or the page complains.
    """
    chromium = shutil.which("chromium")
    if chromium is None or not page.is_file():
        raise SystemExit(f"{page}: no such page" if chromium else "chromium: not on this machine")
    from playwright.sync_api import sync_playwright

    problems: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        scheme = "dark" if dark else "light"
        shown = browser.new_page(
            viewport={"width": size[0], "height": size[1]},
            color_scheme=scheme,  # type: ignore[arg-type]
        )
        shown.on("pageerror", lambda error: problems.append(str(error)))
        shown.goto(f"file://{page.resolve()}#{view}")
        picture.parent.mkdir(parents=True, exist_ok=True)
        shown.screenshot(path=picture)
        browser.close()
    if problems:
        raise SystemExit(f"{page}: {'; '.join(problems)}")


def main() -> int:
    """Read the flags, take the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("page", type=Path, help="HTML file")
    add("picture", type=Path, help="PNG to write")
    add("--size", type=int, nargs=2, default=(1320, 1180), help="window; default: %(default)s")
    add("--view", default="", help="what follows # in the address")
    add("--dark", action="store_true", help="dark colours")
    args = parser.parse_args()
    screenshot(args.page, args.picture, tuple(args.size), args.view, args.dark)
    print(f"written: {args.picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
