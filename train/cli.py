"""What every command line shares: one parser, and mistakes of the user as one line on stderr with exit code 2, never a traceback."""

import argparse
import errno
import logging as python_logging
import os
import pathlib
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from absl import flags, logging
from ml_collections import ConfigDict

from dilax.errors import UserError, did_you_mean
from train.config import task_class
from train.folder import read_run
from train.tasks import TASKS, Task

GRACE = 10.0  # seconds that threads have to end after the main one


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with code 2."""
        unknown = re.match(r"unrecognized arguments: --([^\s=]+)", message)
        if unknown:
            known = [option.lstrip("-") for action in self._actions for option in action.option_strings]
            fail(f"unknown flag --{unknown[1]}; see --help.{did_you_mean(unknown[1], known)}")
        fail(f"{message}; see --help.")


def parser(module: Any) -> Parser:
    """Return a parser for the job in a module, described by the docstring of the module."""
    return Parser(
        prog=f"python -m {module.__spec__.name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def folder(text: str) -> pathlib.Path:
    """Return the absolute path of a folder that a flag names; after `=`, most shells leave a ~ as it is."""
    return pathlib.Path(os.path.abspath(os.path.expanduser(text)))


def run_parser(module: Any, add_flags: Callable[[type[Task], argparse.ArgumentParser], None]) -> Parser:
    """Return a parser with --workdir and the flags of the task of the run in that folder; without a run, the help lists those of all.

    Raises:
        UserError: if --workdir is given, but does not hold a run.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--workdir", type=folder)
    try:
        workdir = first.parse_known_args()[0].workdir
    except argparse.ArgumentError:
        workdir = None
    made = parser(module)
    made.add_argument("--workdir", required=True, type=folder, help="folder of the run")
    if workdir is None:
        made.epilog = "\n".join(_flags_of_tasks(add_flags))
    else:
        config, _ = read_run(workdir)
        add_flags(task_class(config.task), made)
    return made


def _flags_of_tasks(add_flags: Callable[[type[Task], argparse.ArgumentParser], None]) -> list[str]:
    lines = []
    for task in TASKS.values():
        own = argparse.ArgumentParser(add_help=False, usage=argparse.SUPPRESS)
        add_flags(task, own)
        if text := own.format_help().strip():
            lines += [f"runs of the task {task.name}:", text, ""]
    return lines


def run(job: Callable[[], int | None]) -> NoReturn:
    """Run a job and exit with what it returns (None is 0)."""
    _quieten_threads()
    try:
        code = job()
    except UserError as error:
        fail(str(error))
    except BrokenPipeError:  # whoever read the output has seen enough, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except KeyboardInterrupt:
        print("stopped before anything was trained.", file=sys.stderr)
        code = 130
    _end(code or 0)


def _quieten_threads() -> None:
    """Print no errors of other threads, such as those that save a checkpoint: what fails there is raised in the main thread, too."""
    logging.set_verbosity(logging.FATAL)
    python_logging.getLogger("asyncio").setLevel(python_logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    print_error = sys.unraisablehook

    def print_own(error: Any) -> None:  # "Any", since its class is not public
        if threading.current_thread() is threading.main_thread():
            print_error(error)

    sys.unraisablehook = print_own


def _end(code: int) -> NoReturn:
    """Exit, even if threads hang, as some of orbax may do after a save that failed."""

    def end() -> None:
        threading.main_thread().join()
        time.sleep(GRACE)
        os._exit(code)

    threading.Thread(target=end, daemon=True).start()
    sys.exit(code)


def fail(message: str) -> NoReturn:
    """Print one line on stderr and exit with code 2."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    _end(2)


def add_config_flag(to: argparse.ArgumentParser) -> None:
    """Add --config; the overrides --config.KEY=VALUE are left to `load_config`."""
    to.add_argument(
        "--config",
        metavar="FILE[:VARIANT]",
        help="config file, such as configs/digits.py:smoke; override its keys with --config.KEY=VALUE, such as --config.optim.lr=0.01",
    )


def parse_with_config(made: Parser) -> tuple[argparse.Namespace, list[str]]:
    """Return the parsed flags, and the overrides --config.KEY=VALUE (or --config.KEY VALUE) among them."""
    args, rest = made.parse_known_args()
    overrides, others, words = [], [], iter(rest)
    for word in words:
        if not word.startswith(("--config.", "--noconfig.")):
            others.append(word)
        elif "=" in word or word.startswith("--noconfig."):
            overrides.append(word)
        else:
            overrides += [word, *([value] if (value := next(words, None)) is not None else [])]
    if others and others[0].startswith("-"):
        made.error(f"unrecognized arguments: {others[0]}")
    if others:
        fail(f"{others[0]!r} is not a flag; write --config={others[0]} or --workdir={others[0]}.")
    return args, overrides


def load_config(file: str | None, overrides: Sequence[str] = ()) -> ConfigDict:
    """Load FILE or FILE:VARIANT and override its keys.

    Args:
        file: Path of the config file, perhaps with a variant.
        overrides: Words such as "--config.optim.lr=0.01".

    Raises:
        UserError: if the file cannot be loaded, or a key or value is wrong.
    """
    from ml_collections import config_flags

    if file is None:
        raise UserError("give --config=configs/NAME.py, such as --config=configs/digits.py.")
    values = flags.FlagValues()
    argv = ["train", f"--config={file}", *overrides]
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    sys.modules.pop("config_config", None)  # where ml_collections loads each file, over what the file before left there
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the load_module", DeprecationWarning)  # by which ml_collections loads the file
            values(argv)
        config: Any = holder.value
        config.lock()  # a file that could not be read raises at its first use
        missing = [key for key in ("name", "task", "model", "compilation_cache_dir") if key not in config]
    except flags.Error as error:
        raise UserError(_last_line(str(error))) from error
    except (SyntaxError, ImportError) as error:
        raise UserError(f"the config file {file} cannot be loaded: {type(error).__name__}: {error}.") from error
    except (AttributeError, KeyError) as error:
        if "get_config" in str(error):
            raise UserError(f"the config file {file} has no function get_config; see those in configs/.") from error
        raise UserError(_unknown_key(overrides, str(error))) from error
    except OSError as error:
        raise UserError(_unreadable(error)) from error
    if missing:
        raise UserError(f"the config of {file} has no {', '.join(missing)}; begin it with train.config.default_config(NAME, task=...).")
    return config


def _unreadable(error: OSError) -> str:
    """Word an error of the system, which ml_collections may have wrapped in one of its own."""
    match = re.search(r"\[Errno \d+\] (.+?): '([^']+)'", str(error))
    if match is None:
        return f"the config file cannot be read: {str(error).splitlines()[0]}; give --config=configs/NAME.py."
    if match[1] == os.strerror(errno.ENOENT):
        return f"the config file {match[2]} does not exist; give --config=configs/NAME.py, from the folder that holds configs/."
    return f"the config file {match[2]} cannot be read: {match[1]}; give --config=configs/NAME.py."


def _last_line(message: str) -> str:
    """Return what a config file raised, without the traceback that ml_collections puts into its message."""
    if "Traceback" not in message:
        return f"{message}; see --help."
    return message.strip().splitlines()[-1].split("Error: ", 1)[-1]


def _unknown_key(overrides: Sequence[str], message: str) -> str:
    """Word a misspelt `--config.key`: ml_collections names its misspelt part alone."""
    words = re.findall(r"\w+", message.replace("\\n", " "))
    given = next((word for word in overrides if words and re.search(rf"^--config\..*\b{words[0]}\b", word)), "--config")
    near = re.search(r'Did you mean "(\w+)"', message)
    return f"unknown config key {given.split('=')[0].lstrip('-')}.{f' Did you mean {chr(34)}{near[1]}{chr(34)}?' if near else ''}"
