"""Which errors there are, and what each one asks a program to do. Needs neither Redis nor a model.

python examples/errors.py
"""

from pathlib import Path

from mlxq import (
    LLM,
    BatchNotFound,
    Client,
    ConfigError,
    EosError,
    FileInUse,
    InputFileError,
    LoginRefused,
    MlxqError,
    ModelError,
    NoSuchFile,
    QueueError,
    QueueNotReady,
    QueueUnavailable,
    RequestError,
    WorkerFailed,
    request,
)


def advice(error: MlxqError) -> str:
    """What to do next: the classes that say more stand before those that they belong to."""
    match error:
        case RequestError():
            return f"mend the request: {error.param}"
        case FileInUse():
            return "wait for the other run"
        case NoSuchFile():
            return "look for the file elsewhere"
        case InputFileError():
            return "mend the file or its path"
        case EosError():
            return "name an end token"
        case ModelError() | ConfigError() | LoginRefused():
            return "somebody has to change something; the same again would end the same way"
        case QueueNotReady() | QueueUnavailable():
            return "try again later, with the same batch id"
        case BatchNotFound():
            return "look for the batch elsewhere, or submit it again"
        case QueueError():
            return "use another batch id"
        case WorkerFailed():
            return "read the worker's last lines"
        case _:
            return "report it"


attempts = {
    "a wrong field": lambda: request(prompt="Hello", temprature=0),
    "no such model": lambda: LLM(str(Path("nowhere") / "at" / "all")),
    "not an address": lambda: Client("http://localhost"),
    "nobody there": lambda: Client("redis://localhost:1/0").batch("numbers"),
}
for name, attempt in attempts.items():
    try:
        attempt()
    except MlxqError as error:
        print(f"{name}: {type(error).__name__}: {advice(error)}")
