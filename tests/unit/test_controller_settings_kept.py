"""How much history a controller keeps: as told, and never so little that the rest stops working."""

import pytest
from pydantic import ValidationError

from controller.settings import ControllerSettings


def test_history_is_kept_as_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAKURI_CONTROLLER_KEEP_CHANGES", "20000")
    settings = ControllerSettings()
    assert (settings.keep_changes, settings.keep_events) == (20_000, 10_000)


@pytest.mark.parametrize(("name", "too_few"), [("keep_changes", 9_999), ("keep_events", 999)])
def test_too_little_history_is_refused(name: str, too_few: int) -> None:
    with pytest.raises(ValidationError, match="greater than or equal"):
        ControllerSettings.model_validate({name: too_few})
