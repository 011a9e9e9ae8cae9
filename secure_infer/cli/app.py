"""The table of verbs, and what becomes of every exception: one clean message and one exit code."""

from __future__ import annotations

import inspect
import logging
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any

import typer

from secure_infer import __version__
from secure_infer.cli import console
from secure_infer.errors import Problem, SecureInferError, UsageError

INTERRUPTED = 130
INTERNAL = 70

_PROGRAM = "secure-infer"
_DEBUG = "--debug"
_ABOUT = "Encrypted inference: one network under TFHE, CKKS and MPC."


@dataclass(frozen=True)
class Verb:
    """One command: the module that holds its function of the same name, and its line in the help."""

    module: str
    help: str
    panel: str


_EASY, _STAGES, _MODELS = "Start here", "Stages, each a process of its own", "Models and measurements"
_SERVICE, _THREATS = "Service", "Threats"

VERBS: Mapping[str, Verb] = {
    "demo": Verb("demo", "Classify handwritten digits on real ciphertexts under every protocol.", _EASY),
    "predict": Verb("predict", "Predict with a bundle or a model of the zoo, here or on a server.", _EASY),
    "check": Verb("check", "List every layer that a protocol can't evaluate, each with its fix.", _STAGES),
    "compile": Verb("compile", "Compile a network for a protocol to a bundle.", _STAGES),
    "keygen": Verb("keygen", "Client: make a secret key and evaluation keys.", _STAGES),
    "encrypt": Verb("encrypt", "Client: encrypt inputs, one message for each server party.", _STAGES),
    "run": Verb("run", "Server: answer messages; holds no secret.", _STAGES),
    "decrypt": Verb("decrypt", "Client: decrypt the replies.", _STAGES),
    "token": Verb("token", "Server: add, list, rotate or revoke the tokens of clients.", _SERVICE),
    "audit": Verb("audit", "Server: show or verify the log of who asked what and when.", _SERVICE),
    "serve": Verb("serve", "Server: answer clients over HTTP.", _SERVICE),
    "party": Verb("party", "Server: run party a, party b or the dealer of an MPC model.", _SERVICE),
    "provision": Verb("provision", "Server: make each MPC role's keys, certificates and half of the model.", _SERVICE),
    "inspect": Verb("inspect", "Show a bundle's network, cost, parameters and guarantee.", _MODELS),
    "models": Verb("models", "List the models of the zoo.", _MODELS),
    "train": Verb("train", "Train a model of the zoo by its recipe.", _MODELS),
    "bench": Verb("bench", "Run benchmark cases and keep their records.", _MODELS),
    "attack": Verb(
        "attack", "Attack one form of a model: in torch, simulated, on ciphertexts, or on a server.", _THREATS
    ),
    "report": Verb("report", "Measure threats under every protocol and form, and write the matrix.", _THREATS),
}


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns its exit code.

    Every exception ends here: errors of this package print themselves and give their own code, an interrupt gives 130,
    and a defect gives 70 and one line (with `--debug`, its traceback).
    """
    words = list(arguments) or ["--help"]
    as_json = console.wants_json(words, _verb(words))
    try:
        return _call(words)
    except SecureInferError as error:
        return console.report(error, error.exit_code, as_json)
    except (KeyboardInterrupt, typer.Abort):
        return console.report(SecureInferError("Interrupted."), INTERRUPTED, as_json)
    except Exception as error:
        if callable(getattr(error, "format_message", None)):
            return console.report(_misuse(error, words), UsageError.exit_code, as_json)
        return _defect(error, words, as_json)


def _verb(words: Sequence[str]) -> str:
    """The verb that is called; the options before it take no values."""
    return next((word for word in words if not word.startswith("-")), "")


def _call(words: Sequence[str]) -> int:
    log = logging.getLogger("secure_infer")
    if not log.handlers:
        # Without a handler, Python prints warnings that our errors repeat.
        log.addHandler(logging.NullHandler())
    with warnings.catch_warnings():
        if _DEBUG not in words:
            # Libraries warn about themselves, which tells a user of this command nothing.
            warnings.simplefilter("ignore")
        code = _application(words)(args=list(words), prog_name=_PROGRAM, standalone_mode=False)
    if code == INTERRUPTED:
        # Typer has turned the interrupt into a code and said nothing.
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0


def exit_codes() -> dict[int, str]:
    """What each exit code means, read off the tree of errors."""
    codes = {0: "success", SecureInferError.exit_code: "any other error of this package"}
    codes |= {kind.exit_code: _meaning(kind) for kind in SecureInferError.__subclasses__()}
    return codes | {INTERNAL: "a defect of ours (`--debug` shows the traceback)", INTERRUPTED: "interrupted"}


def _meaning(kind: type[SecureInferError]) -> str:
    sentence = inspect.getdoc(kind) or kind.__name__
    return sentence[0].lower() + sentence[1:].rstrip(".")


def _application(words: Sequence[str]) -> Callable[..., Any]:
    """The command tree, in which only the verb that is called is real; the others are a name and a line of help."""
    epilog = "\n".join(["Exit codes:", *(f"{code:>5}  {meaning}" for code, meaning in exit_codes().items())])
    app = typer.Typer(name=_PROGRAM, help=_ABOUT, epilog=epilog, add_completion=False, pretty_exceptions_enable=False)
    app.callback()(_options)
    called = _verb(words)
    for name, verb in VERBS.items():
        function = _function(name, verb) if name == called else _placeholder
        app.command(name, help=None if name == called else verb.help, rich_help_panel=verb.panel)(function)
    return typer.main.get_command(app)


def _function(name: str, verb: Verb) -> Callable[..., Any]:
    module = import_module(f"secure_infer.cli.{verb.module}")
    function: Callable[..., Any] = getattr(module, name)
    return function


def _placeholder() -> None:
    """Stands for a verb that is not called."""


def _show_version(wanted: bool) -> None:
    if wanted:
        console.say(f"{_PROGRAM} {__version__}")
        raise typer.Exit()


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option(_DEBUG, help="Log all, and show the traceback of a defect.")] = False,
) -> None:
    if debug:
        logging.basicConfig(level=logging.DEBUG)


def _misuse(error: Any, words: Sequence[str]) -> UsageError:
    """What the option parser refused, as an error of ours."""
    verb = [_verb(words)] if _verb(words) in VERBS else []
    command = " ".join([_PROGRAM, *verb, "--help"])
    return UsageError(str(error.format_message()), [Problem("command", "Not understood.", f"see `{command}`.")])


def _defect(error: Exception, words: Sequence[str], as_json: bool) -> int:
    if _DEBUG in words:
        console.complain(traceback.format_exc())
    again = " ".join([_PROGRAM, _DEBUG, *(word for word in words if word != _DEBUG)])
    name = type(error).__name__
    problem = Problem("secure-infer", f"{name}: {error}", f"this is a defect; report what `{again}` prints.")
    summary = f"Something went wrong inside secure-infer ({name})."
    return console.report(SecureInferError(summary, [problem]), INTERNAL, as_json)
