"""What ``nl.config`` offers beside structuring itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nl.config import ConfigError, writing


def test_what_cannot_be_written_is_a_config_error_and_other_errors_are_not(tmp_path: Path) -> None:
    place = tmp_path / "file" / "page.html"
    place.parent.write_text("")
    said = re.escape(f"{place}: cannot be written ({place.parent} is a file, not a directory).")
    with pytest.raises(ConfigError, match=said), writing(place):
        place.write_text("x")
    with pytest.raises(ConfigError, match=r"cannot be written \(a full disk\)"), writing(place):
        raise OSError("a full disk")
    with pytest.raises(ValueError, match="another"), writing(place):
        raise ValueError("another")
    with writing(tmp_path / "fine.html"):
        (tmp_path / "fine.html").write_text("x")
    assert (tmp_path / "fine.html").read_text() == "x"
