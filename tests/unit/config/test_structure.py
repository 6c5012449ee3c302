"""What ``nl.config`` offers beside structuring itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from nl.assembly import run_config
from nl.config import ConfigError, writing
from nl.config.hydra import compose


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


def test_options_of_another_kind_are_named_with_it() -> None:
    with pytest.raises(ConfigError) as caught:
        run_config(compose("pilot_smoke", ["optim.kind=muon", "+optim.lrr=1"]))
    first, second = str(caught.value).splitlines()
    assert first.startswith("optim: unknown 'lrr'. Did you mean 'lr'? Known: adjust, lr,")
    assert second.startswith("optim: betas, eps, no_decay: no option of kind=muon (but of adamw, ")
    assert "choose with optim=muon" in second
    said = r"model\.cms\.inner: size: no option of kind=sgd \(but of adam, deep, muon\); set model"
    with pytest.raises(ConfigError, match=said):
        run_config(compose("pilot_smoke", ["model.cms.inner.size=1"]))
    with pytest.raises(
        ConfigError, match=r"model\.cms\.inner: unknown 'sizes'\. Did you mean 'size'"
    ):
        run_config(compose("pilot_smoke", ["model.cms.inner.kind=adam", "model.cms.inner.sizes=1"]))


@pytest.mark.parametrize(
    "words",
    [
        ("model.cms.inner.kind=adam", "model.cms.inner.size=0.1"),
        ("model.cms.inner.size=0.1", "model.cms.inner.kind=adam"),
        ("model.cms.inner={kind:adam,size:0.1}",),
        ("++model.cms.inner={kind:adam,size:0.1}",),
    ],
)
def test_options_of_an_inner_optimizer_are_typed_as_all_others(words: tuple[str, ...]) -> None:
    inner: Any = run_config(compose("pilot_smoke", words)).model.cms.inner  # type: ignore[attr-defined]
    assert (inner.kind, inner.size, inner.beta1) == ("adam", 0.1, 0.9)
