"""What every command line shares: a user's mistake is one line on stderr and exit code 2, never a traceback."""

import argparse
import os
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict

from dilax.errors import UserError, did_you_mean


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with code 2."""
        fail(f"{message}; see --help")


def parser(module: Any) -> Parser:
    """Return a parser for the job in a module, described by the module's docstring."""
    return Parser(prog=f"python -m {module.__spec__.name}", description=module.__doc__)


def run(job: Callable[[], int | None]) -> NoReturn:
    """Run a job and exit with what it returns (None is 0)."""
    logging.set_verbosity(logging.ERROR)
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
    sys.exit(code or 0)


def run_with_config(job: Callable[[ConfigDict, list[str]], int | None], flag: flags.FlagHolder) -> None:
    """Parse absl flags and run a job on the config that `flag`, made by ml_collections, names and on the positional arguments."""
    app.run(lambda argv: run(lambda: job(_config(flag), argv[1:])), flags_parser=_parse)


def fail(message: str) -> NoReturn:
    """Print one line on stderr and exit with code 2."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        known = [name for name in flags.FLAGS if not name.startswith("config.")]
        fail(f"unknown flag --{error.flagname}; see --help.{did_you_mean(error.flagname, known)}")
    except flags.Error as error:
        fail(_last_line(str(error)))
    except (SyntaxError, ImportError) as error:
        fail(f"the config file cannot be loaded: {type(error).__name__}: {error}.")
    except (AttributeError, KeyError) as error:
        if "get_config" in str(error):
            fail("the config file has no function get_config; see those in configs/.")
        fail(_unknown_key(argv, str(error)))
    except OSError as error:
        fail(_unreadable(error))


def _config(flag: flags.FlagHolder) -> ConfigDict:
    if flag.value is None:
        raise UserError("give --config=configs/NAME.py, such as --config=configs/digits.py.")
    try:
        flag.value.lock()  # a file that could not be read raises at its first use
    except OSError as error:
        raise UserError(_unreadable(error)) from error
    return flag.value


def _unreadable(error: OSError) -> str:
    path = re.search(r"No such file or directory: '([^']+)'", str(error))
    if path is None:
        return f"the config file cannot be read: {error.strerror or str(error).splitlines()[0]}; give --config=configs/NAME.py."
    return f"there is no config file {path[1]}; give --config=configs/NAME.py, from the folder that holds configs/."


def _last_line(message: str) -> str:
    """What a config file raised, without the traceback that ml_collections puts into its message."""
    if "Traceback" not in message:
        return f"{message}; see --help."
    return message.strip().splitlines()[-1].split("Error: ", 1)[-1]


def _unknown_key(argv: list[str], message: str) -> str:
    """Word a misspelt `--config.key`: ml_collections names its misspelt part alone."""
    words = re.findall(r"\w+", message.replace("\\n", " "))
    given = next((arg for arg in argv if words and re.search(rf"^--config\..*\b{words[0]}\b", arg)), "--config")
    near = re.search(r'Did you mean "(\w+)"', message)
    return f"unknown config key {given.split('=')[0].lstrip('-')}.{f' Did you mean {chr(34)}{near[1]}{chr(34)}?' if near else ''}"
