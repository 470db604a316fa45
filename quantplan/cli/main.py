"""The console script: finds the command, runs it, and turns every error into one sentence and a hint."""

from __future__ import annotations

import importlib
import sys
import traceback
from typing import Any, NoReturn

import click

from quantplan import __version__
from quantplan.cli.hints import hint_for
from quantplan.cli.printable import printable
from quantplan.errors import ExitCode, QuantplanError

# name -> (module, one line of help): help is listed without importing a command.
COMMANDS: dict[str, tuple[str, str]] = {
    "inspect": ("quantplan.cli.inspect", "What a model is, and its exact size at every preset."),
    "recommend": ("quantplan.cli.recommend", "The best quantization, context and offload of a model for this host."),
    "estimate": ("quantplan.cli.estimate", "Memory by device and part, before any download: does it fit?"),
    "rehearse": ("quantplan.cli.rehearse", "Start the server as planned on a model without weights, and measure."),
    "bench": ("quantplan.cli.bench", "How fast this host really is: corrects every later prediction."),
    "build": ("quantplan.cli.build", "Convert, quantize, evaluate and judge a model: one artifact per preset."),
    "fleet": (
        "quantplan.cli.fleet",
        "Many models and presets from one build file: run here, or export to a CI or cluster.",
    ),
    "compare": ("quantplan.cli.compare", "Artifacts of one source side by side: size, quality, speed, memory."),
    "history": ("quantplan.cli.history", "What was built and measured here, and what became worse since it passed."),
    "report": ("quantplan.cli.report", "Results for a CI: JUnit XML, SARIF, annotations, Markdown."),
    "pull": (
        "quantplan.cli.pull",
        "Take a finished GGUF: choose, download, check, scan, judge; a receipt as of build.",
    ),
    "scan": ("quantplan.cli.scan", "What could hurt in a model from a stranger: structure, template, pickles, code."),
    "verify": ("quantplan.cli.verify", "Check an artifact offline: files, hashes, signature, receipt, results."),
    "sign": ("quantplan.cli.sign", "Sign an artifact with a key, in the OpenSSF's model-signing format."),
    "push": (
        "quantplan.cli.push",
        "Publish an artifact on the hub: files, receipt, results and a card that tells them.",
    ),
    "list": ("quantplan.cli.list", "Artifacts, downloads, toolchains and other files of quantplan, with sizes."),
    "rm": ("quantplan.cli.rm", "Delete an artifact, or something of the cache that no artifact needs."),
    "gc": ("quantplan.cli.gc", "Delete what nothing needs any more: old work folders, downloads, broken rests."),
    "gate": ("quantplan.cli.gate", "Measure a quantization against its 16-bit source: pass, fail or inconclusive."),
    "serve": ("quantplan.cli.serve", "Serve a validated artifact, exactly as planned."),
    "export": ("quantplan.cli.export", "The plan for systemd, Compose, Kubernetes and other launchers."),
    "lint": ("quantplan.cli.lint", "Folklore and contradictions in units, compose files, manifests and scripts."),
    "verify-serving": (
        "quantplan.cli.verify_serving",
        "Is what runs what was planned? From its process, or over HTTP.",
    ),
    "load": ("quantplan.cli.load", "Load a running server as planned and hold it to the plan."),
    "batch": ("quantplan.cli.batch", "Answer a file of requests, resumable, results in order."),
    "hardware": ("quantplan.cli.hardware", "What this machine is, measured if you like; or a machine you name."),
    "doctor": (
        "quantplan.cli.doctor",
        "What here would break a plan or slow it down, and the command that mends it.",
    ),
    "monitor": ("quantplan.cli.monitor", "Memory, temperature, power and swap while a model serves."),
    "toolchain": ("quantplan.cli.toolchain", "Find or build the llama.cpp tools, and test that they work here."),
}


STREAMS = frozenset({"serve", "monitor"})  # what prints a document a line does so on failure too


class LazyGroup(click.Group):
    """Imports a command's module when that command runs: `quantplan --help` imports none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=2)
            meant = f" Did you mean {' or '.join(near)}?" if near else ""
            raise click.UsageError(f"No such command {args[0]!r}.{meant}", ctx)
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Example: quantplan recommend meta-llama/Llama-3.1-8B-Instruct",
)
@click.version_option(__version__, prog_name="quantplan")
@click.option("--debug", is_flag=True, help="Show the Python trace of an error.")
def cli(debug: bool) -> None:  # read at the edge, below
    """Plan, build, prove and serve llama.cpp quantizations: which quant, how much context, how many layers on
    the GPU, will it fit, how fast, how good - answered before the download and proved before the serving."""


def main(argv: list[str] | None = None) -> NoReturn:
    """Runs the command line and exits with the code of STYLE: 0 ok, 1 error, 2 usage, 3 does not fit,
    4 check failed, 5 inconclusive, 130 interrupted."""
    args = sys.argv[1:] if argv is None else argv
    try:
        result: Any = cli.main(args, prog_name="quantplan", standalone_mode=False)
    except QuantplanError as error:
        sys.exit(_tell(error, args))
    except click.UsageError as error:
        sys.exit(_tell_usage(error, args))
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        sys.exit(_tell(_from_os(error), args))
    sys.exit(result if isinstance(result, int) else 0)


class OperatingSystemError(QuantplanError):
    """A file or device the operating system refused."""


def _from_os(error: OSError) -> OperatingSystemError:
    where = f"{error.filename}: " if error.filename else ""
    return OperatingSystemError(f"{where}{error.strerror or error}")


def _command_name(args: list[str]) -> str:
    return next((arg for arg in args if arg in COMMANDS), "quantplan")


def _tell(error: QuantplanError, args: list[str]) -> int:
    hint = hint_for(error) or f"quantplan {_command_name(args)} --help".replace("quantplan quantplan", "quantplan")
    if "--debug" in args:
        traceback.print_exc()
    if "--json" in args:
        from quantplan.report.document import failure, render

        name = _command_name(args)
        click.echo(render(failure(name, error, hint=hint), one_line=name in STREAMS))
    click.echo(f"Error: {printable(str(error))}", err=True)
    if hint:
        click.echo(f"Hint: {printable(hint)}", err=True)
    return int(error.exit_code)


class Usage(QuantplanError):
    """The command line could not be read."""

    exit_code = ExitCode.USAGE


def _tell_usage(error: click.UsageError, args: list[str]) -> int:
    path = error.ctx.command_path if error.ctx else "quantplan"
    if "--json" in args:
        from quantplan.report.document import failure, render

        told = failure(_command_name(args), Usage(error.format_message()), hint=f"{path} --help")
        click.echo(render(told))
    click.echo(f"Error: {printable(error.format_message())}", err=True)
    click.echo(f"Hint: {path} --help", err=True)
    return int(ExitCode.USAGE)
