"""The `mlxq` command line: which commands there are, one sentence each.

Knows where commands live, not what they do: each is imported when it is called, so `mlxq --help` costs no more
than click.
"""

from __future__ import annotations

import click

from mlxq.cli.lazy import Entry, LazyGroup

COMMANDS = {
    "run": Entry("mlxq_worker.commands.run:run", "Answer a file of requests: queue, worker and results in one."),
    "enqueue": Entry("mlxq.cli.enqueue:enqueue", "Put requests in the queue and print their batch id."),
    "worker": Entry("mlxq_worker.commands.worker:worker", "Serve queues with a model until stopped."),
    "serve": Entry("mlxq_worker.commands.serve:serve", "Offer OpenAI's Files and Batches API over the queue."),
    "status": Entry("mlxq.cli.status:status", "Show batches: how far, how fast, and why answers stopped."),
    "collect": Entry("mlxq.cli.collect:collect", "Write a batch's answers to a file."),
    "cancel": Entry("mlxq.cli.cancel:cancel", "Cancel a batch or a single job."),
    "delete": Entry("mlxq.cli.delete:delete", "Delete a batch and its answers."),
    "bench": Entry("mlxq_worker.commands.bench:bench", "Measure a model at several widths, and propose one."),
    "doctor": Entry("mlxq_worker.commands.doctor.command:doctor", "Look at everything, and say what is wrong."),
    "deploy": Entry("mlxq.cli.operations.deploy:deploy", "Print what starts, keeps and watches it on your machines."),
    "metrics": Entry("mlxq.cli.operations.metrics:metrics", "Serve the state of the queues to Prometheus."),
    "top": Entry("mlxq.cli.operations.top:top", "Watch queues, workers, batches and stops, live."),
    "inspect": Entry("mlxq_worker.commands.inspect:inspect", "Print what a model's files say, and what is refused."),
    "eos": Entry("mlxq_worker.commands.eos:eos", "Print the tokens that end a model's answers."),
}


def _print_version(ctx: click.Context, _param: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        from importlib.metadata import PackageNotFoundError, version

        try:
            click.echo(f"mlxq {version('mlxq')}")
        except PackageNotFoundError:
            click.echo("mlxq, not installed: run from its source tree")
        ctx.exit()


@click.group(cls=LazyGroup, entries=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print the version."
)
def main() -> None:
    """Run LLM prompts in bulk through a Redis queue, on Apple silicon.

    Data goes to stdout or files, everything else to stderr. Every option can be given as a variable, MLXQ_ and its
    name (for --grace, MLXQ_GRACE_S). Exit codes: 0 all good, 1 some requests failed or were cut off, 2 wrong usage,
    model or configuration, 3 Redis is away; a command that is interrupted dies by that signal once it has cleaned up.
    """
