"""What every command line shares: one parser, and mistakes of the user as one line on stderr with exit code 2, never a traceback."""

import argparse
import ast
import codecs
import difflib
import errno
import io
import logging as python_logging
import os
import pathlib
import re
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

import jax
from absl import flags, logging
from ml_collections import ConfigDict

import dilax
from dilax.errors import UserError, did_you_mean, one_line
from dilax.files import user_path
from train import hosts
from train.config import flatten, from_json, model_config, task_class
from train.folder import read_run
from train.tasks import TASKS, Task

_SHOWN = 200  # characters of a value, or of what another library says of it, in a message
GRACE = 10.0  # seconds that threads have to end after the main one
# What keys are called elsewhere -> here.
OTHER_KEYS = {
    "learning_rate": "optim.lr",
    "lr": "optim.lr",
    "wd": "optim.weight_decay",
    "epochs": "total_epochs",
    "num_epochs": "total_epochs",
    "batch": "batch_size",
    "data_dir": "data.dir",
    "dataset": "data.name",
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with code 2."""
        unknown = re.match(r"unrecognized arguments: --([^\s=]+)", message)
        valued = re.match(r"argument (--\w+): ignored explicit argument (.+)", message)
        if unknown:
            known = [option.lstrip("-") for action in self._actions for option in action.option_strings]
            hint = did_you_mean(unknown[1], known).replace('"', '"--', 1)  # whose dashes would count as likeness
            fail(f"unknown flag --{unknown[1]}; see --help.{hint}")
        if valued:
            fail(f"{valued[1]} takes no value, and {valued[2]} was given; write {valued[1]} alone.")
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
    """Return the absolute path of a folder, or a file, that a flag names; after `=`, most shells leave a ~ as it is."""
    return pathlib.Path(os.path.abspath(user_path(text)))


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


def _writable(error: UnicodeError) -> tuple[str | bytes, int]:
    """Return what is written in place of characters that an encoding lacks: the bytes of names that are not text, else their numbers."""
    assert isinstance(error, UnicodeEncodeError)
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeEncodeError:
        return codecs.backslashreplace_errors(error)


codecs.register_error("dilax", _writable)


def run(job: Callable[[], int | None]) -> NoReturn:
    """Run a job and exit with what it returns (None is 0)."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files need not be in the encoding of the terminal
        sys.stdout.reconfigure(errors="dilax")
    _quieten_threads()
    try:
        code = job()
        hosts.leave()
    except hosts.SaidByFirstError:
        _end(2)
    except UserError as error:
        fail(str(error))
    except BrokenPipeError:  # whoever read the output has seen enough, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except KeyboardInterrupt as error:
        print(str(error) or "stopped.", file=sys.stderr)
        code = 130
    except Exception as error:
        if not hosts.several():
            raise
        code = _crashed(error)
    _end(code or 0)


def _crashed(error: Exception) -> int:
    """Report an error that is not a mistake of the user in one of several processes; `_end` then sees that the others learn of it."""
    if hosts.is_of_another(error):
        hosts.await_abort()
    traceback.print_exception(error, file=hosts.errors())
    return 1


def _quieten_threads() -> None:
    """Print no errors that are raised in the main thread, too: those of threads that save a checkpoint, and of files left open.

    From Python 3.13 on, a file that is closed as it is deleted reports that its last bytes could not be written, as on a full disk.
    """
    logging.set_verbosity(logging.FATAL)
    python_logging.getLogger("asyncio").setLevel(python_logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    print_error = sys.unraisablehook

    def print_own(error: Any) -> None:  # "Any", since its class is not public
        if threading.current_thread() is threading.main_thread() and not isinstance(error.object, io.IOBase):
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
    who = f"process {jax.process_index()}: " if hosts.several() else ""
    print(f"error: {who}{one_line(message)}", file=hosts.errors())
    _end(2)


def add_config_flag(to: argparse.ArgumentParser) -> None:
    """Add --config; the overrides --config.KEY=VALUE are left to `load_config`."""
    to.add_argument(
        "--config",
        metavar="FILE[:VARIANT]",
        help="config file, such as configs/digits.py:smoke, or the config.json of a run; override its keys with --config.KEY=VALUE, such "
        "as --config.optim.lr=0.01",
    )


def parse_with_config(made: Parser) -> tuple[argparse.Namespace, list[str]]:
    """Return the parsed flags, and the overrides --config.KEY=VALUE (or --config.KEY VALUE) among them."""
    args, rest = made.parse_known_args()
    overrides, others = [], []
    for i, word in enumerate(rest):
        if word.startswith(("--config.", "--noconfig.")):
            overrides.append(word)
        elif i and rest[i - 1].startswith("--config.") and "=" not in rest[i - 1] and not word.startswith("--"):
            overrides[-1] += f"={word}"
        else:
            others.append(word)
    if not others:
        return args, overrides
    other = others[0][:_SHOWN]
    key = re.fullmatch(r"(?:--)?(\w+(?:\.\w+)*\.\w+)=(.*)", other, re.DOTALL)
    if key and not other.startswith("--config"):
        fail(f"{other!r} is not a flag; a key of the config is written --config.{key[1].removeprefix('config.')}={key[2]}.")
    if other.startswith("-"):
        made.error(f"unrecognized arguments: {other}")
    fail(f"{other!r} is not a flag; write --config={other} or --workdir={other}.")


def load_config(file: str | None, overrides: Sequence[str] = (), *, data: str | None = None) -> ConfigDict:
    """Load FILE, FILE:VARIANT or the config.json of a run, and override its keys.

    Args:
        file: Path of the config file, perhaps with a variant.
        overrides: Words such as "--config.optim.lr=0.01". With "--config.model.name=NAME" the config gets the fields of that model, with
            their defaults, in place of those of its own.
        data: Where the data is. A `get_config` whose argument is called `data` is called with it; in any config it becomes data.dir.

    Raises:
        UserError: if the file cannot be loaded, or a key or value is wrong.
    """
    if file is None:
        raise UserError("give --config=configs/NAME.py, such as --config=configs/digits.py.")
    file = str(user_path(file))
    given = dict(word.removeprefix("--config.").split("=", 1) for word in overrides if "=" in word)
    if data is not None and given.get("data.dir", data) != data:
        raise UserError(f"--data={data} and --config.data.dir={given['data.dir']} both say where the data is; give one of them.")
    data = data if data is not None else given.get("data.dir")
    path = file.partition(":")[0]
    fitted = bool(data) and file == path and takes_data(path)  # the config then says which file of a folder it reads
    if fitted:
        overrides = [word for word in overrides if not word.startswith("--config.data.dir=")]
    config = _read_json(file) if path.endswith(".json") else _load_file(f"{file}:{data}" if fitted else file)
    missing = [key for key in ("name", "task", "model", "compilation_cache_dir") if key not in config]
    if missing:
        raise UserError(f"the config of {file} has no {', '.join(missing)}; begin it with train.config.default_config(NAME, task=...).")
    _check_task(given.get("task"), config, path)
    note = _choose_model(given.get("model.name"), config)
    if data is not None and not fitted:
        config.data.dir = data
    config = _override(config, overrides)
    if note:
        print(note, file=sys.stderr)
    return config


def takes_data(path: str) -> bool:
    """Return whether a config file is one for any data: the argument of its `get_config` is not a variant, but is called `data`."""
    try:
        tree = ast.parse(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return False  # which loading it says in a line
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "get_config"]
    return any(argument.arg == "data" for node in functions for argument in node.args.args[:1])


def _load_file(file: str) -> ConfigDict:
    from ml_collections import config_flags

    path = file.partition(":")[0]
    values = flags.FlagValues()
    argv = ["train", f"--config={file}"]
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    sys.modules.pop("config_config", None)  # where ml_collections loads each file, over what the file before left there
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the load_module", DeprecationWarning)  # by which ml_collections loads the file
            values(argv)
        config: Any = holder.value
        if config is None or isinstance(config, dict):
            raise UserError(
                f"get_config of {file} returns {config!r:.40}, not a ConfigDict; begin it with train.config.default_config(...)."
            )
        config.unlock()  # a file that could not be read raises at its first use
    except flags.Error as error:
        raise UserError(_message_of(error)) from error
    except (SyntaxError, ImportError) as error:
        raise UserError(f"the config file {file} cannot be loaded: {type(error).__name__}: {error}.") from error
    except OSError as error:
        raise UserError(_unreadable(error)) from error
    except UserError:
        raise
    except Exception as error:  # whatever the code of a user may raise
        lines = [
            frame.lineno for frame in traceback.extract_tb(error.__traceback__) if os.path.abspath(frame.filename) == os.path.abspath(path)
        ]
        if not lines and "get_config" in str(error):
            raise UserError(f"the config file {file} has no function get_config; see those in configs/.") from error
        if not lines:
            raise
        raise UserError(f"the config file {path} fails at line {lines[-1]}: {type(error).__name__}: {_first_line(error)}.") from error
    return config


def _first_line(error: Exception) -> str:
    """Return an error of a user's code in one line; a KeyError, and the errors of ml_collections, quote theirs."""
    inner = error.args[0] if isinstance(error, AttributeError | KeyError) and error.args else error
    words = inner.args[0] if isinstance(inner, KeyError) and inner.args else inner
    return " ".join(str(words).split()).rstrip(".?")


def _read_json(file: str) -> ConfigDict:
    """Read the config.json of a run."""
    try:
        return from_json(pathlib.Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"the config file {file} cannot be read: {error.strerror}; give the config.json of a run.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file} does not hold a config ({type(error).__name__}: {error}); give the config.json of a run.") from error


def _check_task(name: str | None, config: ConfigDict, path: str) -> None:
    """Refuse another task than that of the config, whose keys and model it would not fit, and say which configs are for it."""
    given: Any = config  # the values of a ConfigDict have no static types
    own = given.task
    if name is None or name == own or name not in TASKS:
        return
    files = sorted(pathlib.Path("configs").glob("*.py"))
    fitting = [str(file) for file in files if file.name != "__init__.py" and _load_file(str(file)).task == name]
    raise UserError(
        f"{path} is a config of the task {own}, and its keys and its model do not fit --config.task={name}; "
        f"start from a config of that task: {', '.join(fitting) or f'default_config({given.name!r}, task={name!r})'}."
    )


def _choose_model(name: str | None, config: ConfigDict) -> str:
    """Give the config the fields of another model, and return a line that says what that leaves out."""
    given: Any = config
    own = given.model
    if name is None or name == own.name or name not in dilax.models.MODELS:
        return ""
    config.model = ConfigDict(model_config(name))
    usual, own = model_config(own.name), own.to_dict()
    chosen = [f"{field}={value}" for field, value in own.items() if field != "name" and usual.get(field) != value]
    dropped = f"; {', '.join(chosen)} of {own['name']} are left out" if chosen else ""
    return f"note: config.model is {name} with its own defaults{dropped}."


def _override(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """Return the config, locked, with the values of words such as "--config.optim.lr=0.01"."""
    from ml_collections import config_flags

    _check_keys(overrides, config)
    values = flags.FlagValues()
    last = {re.split(r"=", re.sub(r"^--(no)?", "", word))[0]: word for word in overrides}  # else tuples would be joined
    argv = ["train", *last.values()]
    try:
        holder = config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        values(argv)
    except flags.IllegalFlagValueError as error:
        raise UserError(_wrong_value(str(error))) from error
    except flags.Error as error:
        raise UserError(_last_line(str(error))) from error
    changed: Any = holder.value
    return changed.lock()


def _wrong_value(message: str) -> str:
    """Word a value of the wrong type."""
    match = re.match(
        r"flag --(config\.[^=]+)=(.*?): (\('Non-boolean argument|invalid literal for int|could not convert)", message, re.DOTALL
    )
    if match is None:
        return f"{message[:_SHOWN]}; see --help."
    given = f"--{match[1]}={match[2][:_SHOWN]}"
    if "boolean" in match[3]:
        return f"{given} is neither true nor false; write --{match[1]}=true or --{match[1]}=false."
    return f"{given} is not {'an integer' if 'int' in match[3] else 'a number'}; give one."


def _unreadable(error: OSError) -> str:
    """Word an error of the system, which ml_collections may have wrapped in one of its own."""
    match = re.search(r"\[Errno \d+\] (.+?): '([^']+)'", str(error))
    if match is None:
        return f"the config file cannot be read: {str(error).splitlines()[0]}; give --config=configs/NAME.py."
    if match[1] == os.strerror(errno.ENOENT):
        return f"the config file {match[2]} does not exist; give --config=configs/NAME.py, from the folder that holds configs/."
    return f"the config file {match[2]} cannot be read: {match[1]}; give --config=configs/NAME.py."


def _message_of(error: BaseException) -> str:
    """Return what a config file raised, of which ml_collections makes an error of its own that holds the traceback."""
    own: BaseException | None = error
    while own is not None and not (isinstance(own, UserError) and "Traceback" not in str(own)):
        own = own.__context__
    return str(own) if own else _last_line(str(error))


def _last_line(message: str) -> str:
    """Return what a config file raised, without the traceback that ml_collections puts into its message."""
    if "Traceback" not in message:
        return f"{message}; see --help."
    return message.strip().splitlines()[-1].split("Error: ", 1)[-1]


def _check_keys(overrides: Sequence[str], config: ConfigDict) -> None:
    """Refuse keys that the config does not have, saying which task has them, or which key may be meant."""
    known = flatten(config.to_dict())
    for word in overrides:
        key = re.sub(r"^--(no)?config\.", "", word).split("=", 1)[0]
        if "[" in key:
            whole = key.partition("[")[0]
            raise UserError(f"config.{key} is a part of a value, which cannot be set alone; give the whole value, --config.{whole}=VALUE.")
        if key in known or key in config:
            continue
        if owners := [name for name, task in TASKS.items() if key in task.keys]:
            raise UserError(f"config.{key} is a key of the task {' and '.join(owners)}, not of {config.task}; leave it out.")
        section, _, field = key.rpartition(".")
        near = OTHER_KEYS.get(field, "") or _nearest(section, field, known)
        raise UserError(
            f"unknown config key config.{key[:80]}.{f' Did you mean {chr(34)}{near}{chr(34)}?' if near else ' See docs/configuration.md.'}"
        )


def _nearest(section: str, field: str, known: Iterable[str]) -> str:
    """Return the known key that is closest to a misspelt one, first of all in its own section; "" if none is close."""
    known = list(known)
    fields = [key.rpartition(".")[2] for key in known if key.rpartition(".")[0] == section]
    if same := difflib.get_close_matches(field, fields, n=1):
        return f"{section}.{same[0]}".lstrip(".")
    elsewhere = [key for key in known if key.rpartition(".")[2] == field]
    return (elsewhere or difflib.get_close_matches(f"{section}.{field}".lstrip("."), known, n=1, cutoff=0.8) or [""])[0]
