"""The command line: every mistake is one line on stderr and exit code 2; --help and --list explain what there is."""

import importlib
import pathlib
import subprocess
import sys
from typing import Any

import pytest
from tiny_runs import ROOT, make_earlier_form, tiny

from dilax import DataSpec
from dilax.errors import UserError
from train import cli, folder, loop, predict
from train.config import default_config, model_config
from train.tasks import TASKS

DIGITS = "--config=configs/digits.py"
CASES = {
    "nothing": ([], "give --config=configs/NAME.py, such as --config=configs/digits.py."),
    "no such file": (
        ["--config=configs/nope.py"],
        "the config file configs/nope.py does not exist; give --config=configs/NAME.py, from the folder that holds configs/.",
    ),
    "no such file, with a change": (
        ["--config=configs/nope.py", "--config.seed=1"],
        "the config file configs/nope.py does not exist; give --config=configs/NAME.py, from the folder that holds configs/.",
    ),
    "a folder": (
        ["--config=configs"],
        "the config file configs cannot be read: Is a directory; give --config=configs/NAME.py.",
    ),
    "variant": (
        ["--config=configs/digits.py:smok"],
        "configs/digits.py has no variant 'smok'; use one of ('full', 'smoke'). Did you mean \"smoke\"?",
    ),
    "misspelt key": ([DIGITS, "--config.optim.lrr=1"], 'unknown config key config.optim.lrr. Did you mean "optim.lr"?'),
    "misspelt part": ([DIGITS, "--config.optm.lr=1"], 'unknown config key config.optm.lr. Did you mean "optim.lr"?'),
    "key under another name": ([DIGITS, "--config.learning_rate=1"], 'unknown config key config.learning_rate. Did you mean "optim.lr"?'),
    "key of another task": (
        [DIGITS, "--config.segmentation.loss=dice"],
        "config.segmentation.loss is a key of the task segmentation, not of classification; leave it out.",
    ),
    "wrong type": (
        [DIGITS, "--config.optim.lr=fast"],
        "--config.optim.lr=fast is not a number; give one.",
    ),
    "neither true nor false": (
        [DIGITS, "--config.augment.flip=yes"],
        "--config.augment.flip=yes is neither true nor false; write --config.augment.flip=true or --config.augment.flip=false.",
    ),
    "a truth after a space": (
        [DIGITS, "--config.augment.flip", "no", "--config.seed=3"],
        "--config.augment.flip=no is neither true nor false; write --config.augment.flip=true or --config.augment.flip=false.",
    ),
    "no epochs": ([DIGITS, "--config.total_epochs=0"], "config.total_epochs=0.0 is out of range; give a number above 0."),
    "no examples": ([DIGITS, "--config.batch_size=0"], "config.batch_size=0 is out of range; give a number of 1 or more."),
    "a key without --config": (
        [DIGITS, "--optim.lr=0.1"],
        "'--optim.lr=0.1' is not a flag; a key of the config is written --config.optim.lr=0.1.",
    ),
    "a key without dashes": (
        [DIGITS, "optim.lr=0.1"],
        "'optim.lr=0.1' is not a flag; a key of the config is written --config.optim.lr=0.1.",
    ),
    "a value of a flag without one": ([DIGITS, "--summary=yes"], "--summary takes no value, and 'yes' was given; write --summary alone."),
    "not a config.json": (
        ["--config=tests/golden/nope.json"],
        "the config file tests/golden/nope.json cannot be read: No such file or directory; give the config.json of a run.",
    ),
    "unknown flag": ([DIGITS, "--workdri=x"], 'unknown flag --workdri; see --help. Did you mean "--workdir"?'),
    "a bare word": ([DIGITS, "runs/x"], "'runs/x' is not a flag; write --config=runs/x or --workdir=runs/x."),
    "field of another model": (
        [DIGITS, "--config.model.name=resnet18", "--config.model.dropout=0.1"],
        "unknown config key config.model.dropout. See docs/configuration.md.",
    ),
    "no get_config": (
        ["--config=train/tasks/streams.py"],
        "the config file train/tasks/streams.py has no function get_config; see those in configs/.",
    ),
    "unknown model": (
        [DIGITS, "--config.model.name=dilated_cnnn", "--summary"],
        "config.model.name='dilated_cnnn' is unknown; dilax.models.names() and docs/models.md list all models. "
        'Did you mean "dilated_cnn" or "dilated_fcn" or "dilated_cnn_mnist"?',
    ),
    "another task": (
        [DIGITS, "--config.task=segmentation"],
        "configs/digits.py is a config of the task classification, and its keys and its model do not fit --config.task=segmentation; "
        "start from a config of that task: SEGMENTATION.",
    ),
    "unknown task": (
        [DIGITS, "--config.task=segmentaton"],
        f"config.task='segmentaton' is unknown; use one of {tuple(TASKS)}. Did you mean \"segmentation\"?",
    ),
    "unknown lowering": (
        [DIGITS, "--config.lowering=lx"],
        "config.lowering='lx' is unknown; use one of ('auto', 'lax', 'taps', 'split', 'products', 'patches', 'planes', 'onednn'). Did you mean \"lax\"?",
    ),
}
Result = tuple[int, str, str]


@pytest.fixture
def job(monkeypatch, capsys):
    """Call as job(module, *arguments): `python -m train.MODULE ARGUMENTS`, in this process; return exit code, stdout and stderr."""

    def call(module: str, *arguments: Any) -> Result:
        with monkeypatch.context() as patch:
            patch.chdir(ROOT)
            patch.setattr(sys, "argv", [module, *map(str, arguments)])
            with pytest.raises(SystemExit) as exit:
                cli.run(importlib.import_module(f"train.{module}").main)
        return (int(exit.value.code or 0), *capsys.readouterr())

    return call


@pytest.fixture
def run_of(tmp_path):
    """Call as run_of(task): the folder of a run of a task that has not saved anything yet."""

    def make(task: str) -> pathlib.Path:
        workdir = tmp_path / task
        workdir.mkdir()
        folder.write_status(workdir, finished=False, model={"name": "dilated_cnn"}, data=DataSpec("toy", (8, 8, 1), ("0", "1")).to_json())
        folder.write_config(workdir, tiny() if task == "classification" else default_config("tiny", task=task), 0)
        return workdir

    return make


def configs_of(task: str) -> list[str]:
    files = [path for path in sorted((ROOT / "configs").glob("*.py")) if path.stem != "__init__"]
    made = {path.name: importlib.import_module(f"configs.{path.stem}").get_config() for path in files}
    return [f"configs/{name}" for name, config in made.items() if config.task == task]


@pytest.mark.parametrize("name", CASES)
def test_one_line(name, tmp_path, job):
    arguments, text = CASES[name]
    workdir = [f"--workdir={tmp_path / 'run'}"] if arguments else []
    text = text.replace("SEGMENTATION", ", ".join(configs_of("segmentation")))
    assert job("main", *arguments, *workdir) == (2, "", f"error: {text}\n")
    assert not (tmp_path / "run").exists()


def test_a_process_ends_with_one_line_and_exit_code_2():
    command = [sys.executable, "-m", "train.main", DIGITS, "--config.optim.lrr=1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", 'error: unknown config key config.optim.lrr. Did you mean "optim.lr"?\n')


def test_a_file_that_is_not_python(tmp_path, job):
    code, _, err = job("main", "--config=README.md", f"--workdir={tmp_path / 'run'}")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("error: the config file README.md cannot be loaded: ")


def test_unknown_dataset(tmp_path, job):
    code, out, err = job("main", DIGITS, "--config.data.name=cifar01", f"--config.data.dir={tmp_path}", f"--workdir={tmp_path / 'run'}")
    assert (code, out) == (2, "")
    assert "cifar01" in err
    assert err.endswith('Did you mean "cifar10"?\n')
    assert err.count("\n") == 1


@pytest.mark.parametrize(("module", "words"), [("evaluate", "--workdir"), ("predict", "--workdir"), ("prepare", "name")])
def test_jobs_without_arguments(module, words, job):
    code, out, err = job(module)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err


def test_summary(job):
    code, out, err = job("main", DIGITS, "--summary")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["layer", "kind", "output", "parameters", "multiply-adds", "receptive", "field"]
    assert lines[1].split() == ["ConvNormAct_0/DilatedConv_0", "DilatedConv", "28x28x16", "144", "112,896", "3x3"]
    assert lines[-1].startswith("total")


def test_help_of_main_explains_itself(job):
    code, out, err = job("main", "--help")
    assert (code, err) == (0, "")
    assert "python -m train.main --config configs/digits.py" in out
    for flag in ("--config", "--config.KEY=VALUE", "--workdir", "--restart", "--summary", "--list"):
        assert flag in out
    assert "resumes where it stopped when the same command is given again" in out


def test_list_of_configs(job):
    code, out, err = job("main", "--list")
    assert (code, err) == (0, "")
    header, *rows = out.splitlines()
    assert header.split() == ["config", "task", "data", "measured", "time"]
    assert {row.split()[0].partition(":")[0] for row in rows} == {
        f"configs/{path.name}" for path in (ROOT / "configs").glob("*.py") if path.stem != "__init__"
    }
    (digits,) = (row for row in rows if row.startswith("configs/digits.py "))
    assert digits.split()[1:3] == ["classification", "digits"]
    assert "99.0 ± 0.1 % test accuracy" in digits and digits.endswith("42 to 47 s on 2 CPU cores, compilation included")


def test_list_without_configs(tmp_path, monkeypatch, job):
    from train import listing

    monkeypatch.setattr(listing, "table", lambda path, table=listing.table: table(tmp_path / path))
    assert job("main", "--list") == (
        2,
        "",
        f"error: {tmp_path}/configs/ does not hold config files; run from the folder that holds configs/.\n",
    )


# Of train.predict, a flag or input that the task has and one of another task.
PREDICT = {
    "classification": ("image files to classify", "--scales"),
    "segmentation": ("--scales", "--stream"),
    "sequence_classification": ("--stream", "--scales"),
    "sequence_labelling": ("--stream", "--steps"),
    "language_model": ("--temperature", "--flip"),
    "separation": ("--stream", "--temperature"),
}


def test_help_of_predict_without_a_run_lists_the_flags_of_all_tasks(job):
    code, out, err = job("predict", "--help")
    assert (code, err) == (0, "")
    sections = {part.partition(":")[0]: part for part in out.split("runs of the task ")[1:]}
    assert set(sections) == set(TASKS)
    for task, (own, other) in PREDICT.items():
        assert own in sections[task] and other not in sections[task]


@pytest.mark.parametrize("task", PREDICT)
def test_help_of_predict_with_a_run_lists_the_flags_of_its_task(task, run_of, job):
    own, other = PREDICT[task]
    code, out, err = job("predict", "--workdir", run_of(task), "--help")
    assert (code, err) == (0, "")
    assert own in out and other not in out
    assert "runs of the task" not in out.partition("options:")[2]


def test_help_of_evaluate(run_of, job):
    code, out, _ = job("evaluate", "--help")
    assert code == 0 and "runs of the task segmentation:" in out and "runs of the task classification" not in out
    for task in ("classification", "segmentation"):
        code, out, _ = job("evaluate", f"--workdir={run_of(task)}", "--help")
        assert code == 0 and ("--scales" in out) == ("--flip" in out) == (task == "segmentation")


@pytest.mark.parametrize(
    ("module", "task", "words", "text"),
    [
        ("evaluate", "classification", ["--scales=1,2"], "unknown flag --scales; see --help."),
        ("evaluate", "language_model", ["--flip"], "unknown flag --flip; see --help."),
        ("predict", "classification", ["--flip", "image.png"], "unknown flag --flip; see --help."),
        ("predict", "segmentation", ["--temperature=2", "image.png"], "unknown flag --temperature; see --help."),
        ("predict", "classification", ["--stream"], "unknown flag --stream; see --help."),
        ("predict", "classification", [], "give inputs; see --help."),
        ("predict", "language_model", [], "give inputs, or --stream without inputs; see --help."),
        ("predict", "language_model", ["--stream", "word"], "give inputs, or --stream without inputs; see --help."),
    ],
)
def test_a_flag_of_another_task_is_one_line(module, task, words, text, run_of, job):
    assert job(module, f"--workdir={run_of(task)}", *words) == (2, "", f"error: {text}\n")


@pytest.mark.parametrize(("module", "words"), [("evaluate", []), ("predict", []), ("predict", ["image.png"]), ("predict", ["--flip"])])
def test_a_folder_without_a_run(module, words, tmp_path, job):
    text = f"--workdir={tmp_path} does not hold a run; train one with `python -m train.main --config=... --workdir={tmp_path}`."
    assert job(module, "--workdir", tmp_path, *words) == (2, "", f"error: {text}\n")


def test_a_run_that_has_not_saved_anything(run_of, job):
    workdir = run_of("classification")
    text = f"{workdir} does not hold a trained run (it has no best/); train one there, or give the folder of another run."
    for module, words in (("evaluate", []), ("predict", ["image.png"])):
        assert job(module, f"--workdir={workdir}", *words) == (2, "", f"error: {text}\n")


def test_a_run_that_was_stopped_before_its_first_evaluation(run_of, job):
    workdir = run_of("classification")
    (workdir / "best").mkdir()
    text = f"{workdir} does not hold a checkpoint yet; wait for the first evaluation of the run."
    assert job("predict", f"--workdir={workdir}", "image.png") == (2, "", f"error: {text}\n")
    folder.write_status(workdir, step=14)
    text = (
        f"{workdir} has been trained for 14 steps and saved, but not evaluated yet, which decides what to predict with; "
        "let the run go on, or run its command again to resume it."
    )
    for module, words in (("evaluate", []), ("predict", ["image.png"])):
        assert job(module, f"--workdir={workdir}", *words) == (2, "", f"error: {text}\n")


@pytest.mark.parametrize(("module", "words"), [("main", [DIGITS]), ("evaluate", ["--flip"]), ("predict", ["image.png"])])
def test_a_folder_of_an_earlier_version(module, words, run_of, job):
    workdir = run_of("classification")
    make_earlier_form(workdir)
    text = f"{workdir} holds a run of an earlier version of dilax, which this version cannot read; train it again in another folder."
    assert job(module, f"--workdir={workdir}", *words) == (2, "", f"error: {text}\n")


def interrupt(*args: Any, **options: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("steps", "begun", "text"),
    [
        ((), False, "stopped before anything was trained."),
        ((), True, "stopped at once, before a first checkpoint in {0}; run the same command again to begin anew."),
        ((7, 14), True, "stopped at once; step 14 is saved in {0}; run the same command again to resume from it."),
    ],
)
def test_ctrl_c_says_what_is_saved(steps, begun, text, tmp_path, monkeypatch, job):
    """The first of a run ends its step and saves; the second ends the process at once."""
    if begun:
        (tmp_path / "run.json").write_text("{}")
    for step in steps:
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
        (tmp_path / "checkpoints" / f"{step + 7}.orbax-checkpoint-tmp").mkdir()
    monkeypatch.setattr(loop, "run", interrupt)
    assert job("main", DIGITS, f"--workdir={tmp_path}") == (130, "", f"{text.format(tmp_path)}\n")


def test_ctrl_c_in_other_jobs_is_one_line(tmp_path, monkeypatch, run_of, job):
    monkeypatch.setattr(predict, "load_trained", interrupt)
    assert job("predict", f"--workdir={run_of('classification')}", "image.png") == (130, "", "stopped.\n")


@pytest.mark.parametrize(
    "before", [["--config.optim.lr=0.5"], ["--config.optim.lr", "0.5"], ["--config.augment.flip", "--config.optim.lr=0.5"]]
)
def test_overrides_may_come_before_the_config(before, monkeypatch, job):
    seen = []
    monkeypatch.setattr(loop, "run", lambda config, *args, **options: seen.append(config))
    assert job("main", *before, DIGITS) == (0, "", "")
    assert seen[0].optim.lr == 0.5 and seen[0].augment.flip == ("--config.augment.flip" in before)


@pytest.mark.parametrize("name", ["resnet18", "separable_cnn", "drn_d_22"])
def test_another_model_has_its_own_fields(name, monkeypatch, job):
    seen = []
    monkeypatch.setattr(loop, "run", lambda config, *args, **options: seen.append(config))
    code, out, err = job("main", DIGITS, f"--config.model.name={name}")
    assert (code, out) == (0, "") and seen[0].model.to_dict() == model_config(name)
    left_out = "dilations=(1, 2, 1, 2), dropout=0.4, features=(16, 32, 64, 64), pools=(2, 2, 1, 1) of dilated_cnn are left out"
    assert err == f"note: config.model is {name} with its own defaults; {left_out}.\n"


def test_a_field_of_another_model_is_set(monkeypatch, job):
    seen = []
    monkeypatch.setattr(loop, "run", lambda config, *args, **options: seen.append(config))
    job("main", DIGITS, "--config.model.name=resnet18", "--config.model.stage_features=(8, 8, 8, 8)")
    assert seen[0].model.to_dict() == model_config("resnet18", stage_features=(8, 8, 8, 8))


def test_the_config_of_a_run_is_a_config(tmp_path, monkeypatch, job):
    """It gives the same config, and keys of it can be changed."""
    seen = []
    monkeypatch.setattr(loop, "run", lambda config, *args, **options: seen.append(config))
    written = tiny(**{"augment.flip": True, "optim.lr_multipliers": (("^head/", 3.0),)})
    folder.write_config(tmp_path, written, 0)
    assert job("main", f"--config={tmp_path}/config.json") == (0, "", "")
    assert job("main", f"--config={tmp_path}/config.json", "--config.optim.lr=0.5", "--config.model.name=resnet18")[0] == 0
    assert seen[0].to_dict() == written.to_dict()
    assert seen[1].optim.lr == 0.5 and seen[1].model.to_dict() == model_config("resnet18")


@pytest.mark.parametrize(
    "text", ["[1, 2]", "{}", "not json", '{"name": "x", "task": "nope"}', '{"name": "x", "task": "classification", "optim": 3}']
)
def test_a_json_file_that_is_not_a_config_is_one_line(text, tmp_path, job):
    (tmp_path / "config.json").write_text(text)
    code, out, err = job("main", f"--config={tmp_path}/config.json")
    assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith("error: ")


def test_a_config_is_loaded_and_overridden_from_python(root):
    """Whatever the arguments of the process are."""
    assert cli.load_config(str(root / "configs" / "digits.py"), ["--config.optim.lr=0.5"]).optim.lr == 0.5


def test_a_config_that_did_not_start_from_the_default(tmp_path):
    (tmp_path / "mine.py").write_text("from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({'name': 'x'})\n")
    with pytest.raises(UserError, match=r"mine\.py has no task, model, compilation_cache_dir; begin it with train\.config\.default_config"):
        cli.load_config(str(tmp_path / "mine.py"))
