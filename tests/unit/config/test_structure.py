"""What ``nl.config`` offers beside structuring itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from nl.assembly import run_config
from nl.config import ConfigError, structure, writing
from nl.config.groups import EvaluatorConfig
from nl.config.hydra import compose, config_dir
from nl.config.registry import unknown


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


def test_off_and_on_are_words_where_words_are_asked_for() -> None:
    """YAML 1.1 reads them as bools, in files as in values of ``nl eval --set``."""

    def made(kind: str, **fields: Any) -> Any:
        return structure(EvaluatorConfig, {"kind": kind, **fields}, kind)

    assert made("perplexity", memorize=[False, "context"]).memorize == ("off", "context")
    assert made("floor", writes=[True, "frozen"]).writes == ("on", "frozen")
    for fields in ({"state": False}, {"splits": [True]}, {"memorize": [True]}):
        with pytest.raises(ConfigError, match=r"YAML reads off, no, on .* quote the word"):
            made("perplexity", **fields)
    with pytest.raises(ConfigError, match=r"max_tokens: expected int, got False\.$"):
        made("perplexity", max_tokens=False)


def test_of_many_names_the_nearest_are_listed_and_where_the_others_are() -> None:
    with pytest.raises(ConfigError) as caught:
        compose("pilot", ["experiment=probes/small/mad_recal"])
    told = str(caught.value)
    assert "Did you mean 'probes/small/mad_recall'? Nearest: probes/small/mad_recall, " in told
    assert told.endswith(f" others: files below {config_dir() / 'experiment'}.")
    assert len(told.partition("Nearest: ")[2].split(", ")) == 8
    with pytest.raises(ConfigError, match=r"experiment: unknown 'nope'\. Nearest: "):
        compose("pilot", ["experiment=nope"])
    few = unknown("block", "hop", ["hope", "mamba"], "nl help block")
    assert few == "block: unknown 'hop'. Did you mean 'hope'? Known: hope, mamba."
    assert "Did you mean 'small/mqar'?" in unknown("x", "mqa", ["small/recall", "small/mqar"])
