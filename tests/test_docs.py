"""The documentation is complete, its commands and links are right, and its tables and numbers are those of the code."""

import ast
import functools
import importlib
import importlib.util
import inspect
import pathlib
import re
import shlex
import types

import pytest

import dilax
from train.keys import Key

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(path for path in (ROOT / "docs").rglob("*.md") if not {"generated", "_build"} & {*path.relative_to(ROOT).parts})]
)
API = "\n".join(path.read_text() for path in sorted((ROOT / "docs" / "api").glob("*.rst")))
# Modules that are documented although `dilax` does not list them by name.
MODULES = ("causal", "context", "generate", "inference", "loading", "spec", "state_dicts", "summary", "weights")
COMMANDS = (
    'pip install -e ".[train]" && python -m train.main --config configs/digits.py',
    'pip install -e ".[test]" && python -m pytest',
)


def page_id(path):
    return str(path.relative_to(ROOT))


@functools.cache
def tables():
    """The module docs/generate_tables.py, which belongs to no package."""
    found = importlib.util.spec_from_file_location("generate_tables", ROOT / "docs" / "generate_tables.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def blocks(path, language):
    """The code blocks of a page in one language, without indentation."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)


def public_names():
    """{full name: object} of everything public, constants left out, which have no docstring of their own."""
    names = {f"dilax.{name}": getattr(dilax, name) for name in dilax.__all__}
    modules = [one for one in names.values() if inspect.ismodule(one)] + [importlib.import_module(f"dilax.{name}") for name in MODULES]
    for module in modules:
        listed = getattr(module, "__all__", None)
        for name, one in vars(module).items():
            here = getattr(one, "__module__", "") == module.__name__ and (inspect.isclass(one) or inspect.isfunction(one))
            if (name in listed) if listed else (here and not name.startswith("_")):
                names[f"{module.__name__}.{name}"] = one
    return {name: one for name, one in names.items() if not inspect.ismodule(one)}


def documented(name, one):
    """Whether the API pages have an entry for a name, by itself or with its module, under any of the names that it has."""
    short = name.rpartition(".")[2]
    full = {name, f"dilax.{short}", f"{getattr(one, '__module__', '')}.{short}"}
    entries = set(re.findall(r"^\.\. (?:autofunction|autoclass|py:data):: (\S+)$", API, re.MULTILINE))
    modules = set(re.findall(r"^\.\. automodule:: (\S+)\n   :members:$", API, re.MULTILINE))
    return bool(full & entries) or name.rpartition(".")[0] in modules


@pytest.mark.parametrize("name", sorted(public_names()))
def test_every_public_name_is_documented(name):
    one = public_names()[name]
    assert documented(name, one), f"{name} has no entry in docs/api"
    if inspect.isclass(one) or isinstance(one, types.FunctionType):
        assert (one.__doc__ or "").strip(), f"{name} has no docstring"
        assert not (one.__doc__ or "").startswith(f"{one.__name__}("), f"{name} has the docstring of a dataclass"


def test_readme_is_a_face():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    for command in COMMANDS:
        assert f"```sh\n{command}\n```" in text
    for page in (ROOT / "docs").glob("*.md"):
        if page.stem not in ("index", "changelog"):
            assert f"(docs/{page.name})" in text, page.name


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_links_lead_somewhere(path):
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http", "#")):
            file, _, anchor = target.partition("#")
            assert (path.parent / file).is_file(), target
            if anchor:
                headings = re.findall(r"^#+ (.*)$", (path.parent / file).read_text(), re.MULTILINE)
                assert anchor in [re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings], target


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_code_blocks_are_run(path):
    for block in blocks(path, "python"):
        assert block.startswith(">>> "), block
    languages = set(re.findall(r"^```(.+)$", path.read_text(), re.MULTILINE))
    assert languages <= {"python", "sh", "bibtex", "{toctree}", "{include} ../CHANGELOG.md"}


def commands():
    """(page, words) of every call of `python -m` in a shell block."""
    found = []
    for path in PAGES:
        for line in "".join(blocks(path, "sh")).splitlines():
            for part in re.split(r"&&|\|", line.split("  #")[0]):
                if "python -m" in part:
                    words = shlex.split(part.split(" < ")[0].split(" > ")[0])
                    found.append((page_id(path), words[words.index("-m") + 1 :]))
    return found


@pytest.mark.parametrize(("page", "words"), commands(), ids=lambda value: value if isinstance(value, str) else " ".join(value[:3]))
def test_commands_are_known(page, words):
    module, *rest = words
    if module in ("pytest", "tensorboard.main"):
        return
    source = inspect.getsource(importlib.import_module(module)) + "".join(path.read_text() for path in (ROOT / "train").rglob("*.py"))
    config = None
    for place, word in enumerate(rest):
        if word == "--config":
            file, _, variant = rest[place + 1].partition(":")
            if not (ROOT / file).is_file():
                assert file in ("flowers.py", "configs/NAME.py", "runs/my_images/config.json"), file
                return
            get_config = importlib.import_module(file.removesuffix(".py").replace("/", ".")).get_config
            config = get_config(variant) if variant else get_config()
        elif word.startswith("--config."):
            assert config is not None
            node = config
            for part in word.removeprefix("--config.").partition("=")[0].split("."):
                assert part in node, f"{page}: {word}"
                node = node[part]
        elif word.startswith("--") and word != "--help":
            assert re.search(rf'"(--)?{word[2:].partition("=")[0]}"', source), f"{page}: {word}"


def test_every_task_has_a_page():
    pages = {path.stem for path in (ROOT / "docs" / "training").glob("*.md")} - {
        "index",
        "volumes",
    }  # the latter is a kind of data of segmentation
    assert pages == set(importlib.import_module("train.tasks").TASKS)
    text = (ROOT / "docs" / "training" / "index.md").read_text()
    for name in pages:
        assert f"[`{name}`]({name}.md)" in text


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem)
def test_every_measured_number_is_among_the_results(path):
    results = (ROOT / "docs" / "results.md").read_text()
    assert f"configs/{path.name}" in results
    header = ast.get_docstring(ast.parse(path.read_text())) or ""
    header = re.sub(r"arXiv:\S+|section \S+|\w+==\S+|--\S+", "", header)
    measured = re.findall(r"(?<![\w.])\d+\.\d+(?:e-\d+)?(?![\w.]*\w)", header)
    assert [number for number in measured if number not in results] == []


SMALL = (
    "dilated_cnn",
    "separable_cnn_single_layer",
    "separable_detector",
    "drn_d_22",
    "resnet18",
    "dilated_fcn",
    "unet_dilated",
    "lraspp_mobilenet_v2",
)
SEQUENCES = ("bytenet", "conv_tasnet", "gated_dilated_cnn", "separable_tcn", "tcn", "wavenet")


@pytest.mark.parametrize("name", [*SMALL, *SEQUENCES])
def test_table_of_models_is_true(name):
    assert tables().model_row(name) in (ROOT / "docs" / "models.md").read_text().splitlines()


def test_table_has_every_model_and_its_paper():
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", (ROOT / "docs" / "models.md").read_text(), re.MULTILINE))
    assert sorted(rows) == dilax.models.names()
    for name, row in rows.items():
        paper, _, _, strides, published = row.split(" | ")
        assert (paper, strides, published) == (tables().paper(name), tables().strides(name), tables().published(name))
        _, number = tables().PAPERS[tables().class_name(name)]
        module = inspect.getmodule(getattr(dilax.models, tables().class_name(name)))
        assert module is not None
        assert number in (module.__doc__ or "") + inspect.getsource(module), name
    assert f"{len(rows)} models" in (ROOT / "README.md").read_text()


def test_table_of_keys():
    keys = {
        "a.b": Key(0.5, "share | of x", (0, 1), may_change=True),
        "a.c": Key("x", "word", choices=("x", "y"), needs=("a.b", (0.5, 0.75))),
    }
    assert tables().keys_table(keys, {"csv": ("a.b",), "wav": ()}).splitlines() == [
        "| key | default | meaning | on resume |",
        "|---|---|---|---|",
        "| `a.b` | `0.5` | Share \\| of x. From 0 to 1. Read with the data `'csv'`. | may change |",
        "| `a.c` | `'x'` | Word. One of `'x'`, `'y'`. Read if `a.b` is `0.5` or `0.75`. | fixed |",
    ]


def test_the_page_of_keys_is_true():
    tables_of_page = (ROOT / "docs" / "configuration.md").read_text().partition(tables().BEGIN)[2].partition(tables().END)[0]
    assert tables_of_page.strip() == tables().keys_tables(), "run `python docs/generate_tables.py`"
    for task in importlib.import_module("train.tasks").TASKS.values():
        assert all(f"| `{name}` |" in tables_of_page for name in task.keys)


def test_layout_is_true():
    """Every name at the start of a line of the layout exists."""
    block = re.search(r"^```\n(.*?)^```", (ROOT / "docs" / "layout.md").read_text(), re.DOTALL | re.MULTILINE)
    assert block is not None
    folder = ROOT
    for line in block[1].splitlines():
        names = re.findall(r"[\w.]+(?:\.py|/)(?= |$)", line[:22] if not line.startswith("  main.py") else line[:60])
        if not line.startswith(" ") and names:
            folder = ROOT / names[0]
        for name in names:
            assert (folder / name).exists() or (ROOT / name).exists(), name
