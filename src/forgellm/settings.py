"""`settings.toml` in the workspace: what the owner of this machine allows. Nothing here writes it."""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic import Field, ValidationError

from forgellm.errors import ConfigError
from forgellm.schema.request import Request

SETTINGS_NAME = "settings.toml"


class Settings(Request):
    linked_models: bool = Field(
        False, description="Links in models/base/ may lead to model folders outside the workspace."
    )


def read_settings(workspace_root: Path) -> Settings:
    """The defaults without a file. Raises ConfigError for a file that is wrong: what it would allow
    or forbid is not guessed."""
    try:
        text = (workspace_root / SETTINGS_NAME).read_text("utf-8")
    except FileNotFoundError:
        return Settings.model_validate({})
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError.one(SETTINGS_NAME, f"cannot be read: {reason}") from None
    try:
        return Settings.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError.one(SETTINGS_NAME, f"is not TOML: {error}") from None
    except ValidationError as error:
        known = ", ".join(Settings.model_fields)
        problems = [
            {"field": f"{SETTINGS_NAME}: {problem['loc'][0]}", "message": problem["msg"]}
            for problem in error.errors()
        ]
        raise ConfigError(problems, suggestion=f"Known settings: {known}.") from None
