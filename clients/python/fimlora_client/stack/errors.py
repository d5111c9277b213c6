"""Why the stack could not be started or kept up."""

from fimlora_client.errors import ClientError, InvalidSettings


class StackError(ClientError):
    """Base class; ``next_step`` says what to do."""

    code = "stack_error"

    def __init__(self, message: str, next_step: str = "") -> None:
        super().__init__(message, next_step)
        self.next_step = next_step

    def __str__(self) -> str:
        return str(self.args[0])


class SettingsRefused(StackError, InvalidSettings):
    """A process of the stack says that the environment cannot be used."""

    code = "invalid_settings"
