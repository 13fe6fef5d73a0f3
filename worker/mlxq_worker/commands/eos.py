"""`mlxq eos MODEL`: which tokens end an answer of this model, and who says so.

Reads the model's small files only; neither its weights nor mlx are loaded.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import click

from mlxq.cli import options
from mlxq.cli.terminal import cell, show
from mlxq.errors import ModelError
from mlxq.files.output.same_model import EosSets
from mlxq_worker.commands.worker_options import words_of

if TYPE_CHECKING:
    from mlxq_worker.model.eos import EosToken
    from mlxq_worker.model.load import DescribedModel

PIPED_WIDTH = 160
"""Columns of a table that goes to a file or a program: no line is folded there."""


@click.command(context_settings=options.SETTINGS)
@click.argument("model")
@click.option("--json", "as_json", envvar="MLXQ_JSON", is_flag=True, help="Print one JSON object instead of a table.")
@click.option(
    "--extra-eos-token",
    multiple=True,
    metavar="TOKEN",
    help="A further end token, as its id or its text. May be repeated.",
)
@click.option("--allow-no-eos", is_flag=True, help="Accept a model that names no end token at all.")
def eos(model: str, as_json: bool, extra_eos_token: tuple[str, ...], allow_no_eos: bool) -> None:
    """Print the tokens that end an answer of MODEL, with the sources that name each of them.

    MODEL is a directory, a Hub repository such as org/name, or demo. The variables that add end tokens to a worker,
    MLXQ_EXTRA_EOS_TOKEN and MLXQ_ALLOW_NO_EOS, count here too.

    Example: mlxq eos mlx-community/Qwen3-4B-4bit --json
    """
    from mlxq_worker.model.load import load_tokenizer_only

    described = load_tokenizer_only(model, extra_eos_tokens=extra_eos_token, allow_no_eos=allow_no_eos)
    if as_json:
        show(json.dumps(eos_as_object(described), ensure_ascii=False))
    else:
        _print_table(described)


def eos_as_object(described: DescribedModel) -> dict[str, Any]:
    """The set as JSON has it."""
    return {
        "model": described.name,
        "path": str(described.path),
        "vocab_size": described.vocab_size,
        "primary_id": described.eos.primary_id,
        "tokens": [
            {
                "id": token.id,
                "token": token.token,
                "sources": list(token.sources),
                "chat_only": token.id in described.eos.chat_only,
                "primary": token.id == described.eos.primary_id,
            }
            for token in described.eos.tokens
        ],
        "rejected": [
            {"token": end.token, "source": end.source, "reason": end.reason} for end in described.eos.rejected
        ],
    }


class EosProcess:
    """This command as a process of its own, for one that has other things to do meanwhile: reading a tokenizer takes a
    second, and more memory than the whole rest of a run.

    Args:
        options: of the command, by their flags.
    """

    def __init__(self, model: str, **options: object) -> None:
        given = [word for name, value in options.items() for word in words_of(f"--{name.replace('_', '-')}", value)]
        command = [sys.executable, "-m", "mlxq", "eos", model, "--json", *given]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)

    def sets(self) -> EosSets:
        """What it has found, once it has ended.

        Raises:
            ModelError: the model's files don't tell.
        """
        said, complaint = self._process.communicate()
        if self._process.returncode:
            raise ModelError(complaint.strip().removeprefix("Error: ") or "mlxq eos has been ended")
        tokens = json.loads(said)["tokens"]
        chat = frozenset((token["id"], token["token"]) for token in tokens)
        return EosSets(chat, frozenset((token["id"], token["token"]) for token in tokens if not token["chat_only"]))

    def close(self) -> None:
        """End it, if nobody has asked."""
        with self._process as process:
            process.kill()


def _print_table(described: DescribedModel) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("id", "token", "sources", "used for", title=cell(described.name), title_justify="left")
    for token in described.eos.tokens:
        table.add_row(str(token.id), cell(token.token), "\n".join(token.sources), _use(token, described))
    for end in described.eos.rejected:
        table.add_row("", cell(end.token), cell(end.source), cell(f"no end: {end.reason}"))
    Console(width=None if sys.stdout.isatty() else PIPED_WIDTH).print(table)


def _use(token: EosToken, described: DescribedModel) -> str:
    requests = "chat only" if token.id in described.eos.chat_only else "all requests"
    return f"{requests}, primary" if token.id == described.eos.primary_id else requests
