"""Templates against promptsource's own output, hostile templates, collections."""

import hashlib
import json
import pickle
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t0x.prompts.collection import TemplateCollection, default_collection
from t0x.prompts.files import read_templates
from t0x.prompts.template import Metadata, RenderError, Template

GOLDEN = Path(__file__).parents[1] / "golden"
EXPECTED = json.loads((GOLDEN / "templates.json").read_text(encoding="utf-8"))
TEMPLATES = read_templates(GOLDEN / "templates.yaml")


def outcome(function, *arguments, **options):
    """The result as the golden file keeps it."""
    try:
        result = function(*arguments, **options)
    except RenderError:
        return "raises"
    text = json.dumps(result, ensure_ascii=False)
    if len(text) <= 300:
        return result
    return {"sha256": hashlib.sha256(text.encode()).hexdigest()}


def expected(value):
    return "raises" if isinstance(value, dict) and "raises" in value else value


@pytest.mark.parametrize("golden", EXPECTED["templates"], ids=lambda golden: golden["name"])
def test_renders_promptsources_bytes(golden):
    template = TEMPLATES[golden["name"]]
    calls = {
        "parts": template.apply,
        "untruncated": lambda row: template.apply(row, truncate=False),
        "highlighted": lambda row: template.apply(row, highlight_variables=True),
        "choices": template.get_answer_choices_list,
    }
    for kind, call in calls.items():
        for row, value in zip(EXPECTED["rows"], golden[kind], strict=False):
            assert outcome(call, row) == expected(value), (kind, row)
    fixed = expected(golden["fixed_choices"])
    assert outcome(template.get_fixed_answer_choices_list) == fixed


def test_golden_file_covers_the_templates():
    assert [golden["name"] for golden in EXPECTED["templates"]] != []
    assert {golden["name"] for golden in EXPECTED["templates"]} == set(TEMPLATES)
    outcomes = [expected(x) for golden in EXPECTED["templates"] for x in golden["parts"]]
    assert outcomes.count("raises") < len(outcomes) / 4


def test_rows_are_not_changed_and_stay_the_same():
    for row in EXPECTED["rows"]:
        before = json.dumps(row)
        for template in TEMPLATES.values():
            outcome(template.apply, row)
        assert json.dumps(row) == before


def test_mutating_template_leaves_the_rows_lists_alone():
    template = Template("t", "{{ words.append('x') or '' }}{{ words | length }} ||| y")
    row = {"words": ["a"]}
    assert template.apply(row) == template.apply(row) == ["2", "y"]
    assert row == {"words": ["a"]}


def test_numpy_values_render_as_python_ones():
    row = {"label": np.int64(1), "text": np.str_("a|||b"), "words": np.array(["x", "y"])}
    template = Template("t", "{{ text }} {{ words | join(',') }} ||| {{ answer_choices[label] }}")
    template = Template(template.name, template.jinja, "no ||| yes")
    assert template.apply(row) == ["a|||b x,y", "yes"]
    assert Template("t", "{{ (label + 1) }} ||| {{ (label == 1) }}").apply(row) == ["2", "True"]


def test_choice_depends_on_the_row_alone():
    template = Template(
        "t", "{{ ['a', 'b', 'c', 'd'] | choice }}{{ range(9) | random }} ||| {{ n }}"
    )
    once = [template.apply({"n": n}) for n in range(100)]
    assert once == [template.apply({"n": n}) for n in reversed(range(100))][::-1]
    assert len({parts[0] for parts in once}) > 20
    code = (
        "from t0x.prompts import Template;"
        f"print([Template('t', {template.jinja!r}).apply({{'n': n}})[0] for n in range(9)])"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == str([parts[0] for parts in once[:9]])


def test_row_with_answer_choices_is_refused():
    with pytest.raises(RenderError, match=r"template 't'.*answer_choices"):
        Template("t", "{{ x }} ||| y").apply({"x": 1, "answer_choices": ["a"]})


def test_errors_are_one_line_that_names_the_template():
    for source in ("{{ x.y.z }}", "{% if %}", "{{ 1/0 }}", "{{ x | nonesuch }}", "{{\n\n x"):
        with pytest.raises(RenderError, match="template 'my name': ") as caught:
            Template("my name", source).apply({})
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 300


def test_templates_pickle_compare_and_run_in_threads():
    template = TEMPLATES["row choices"]
    copy = pickle.loads(pickle.dumps(template))
    assert copy == template
    assert hash(copy) == hash(template)
    rows = [{**EXPECTED["rows"][0], "title": str(n)} for n in range(400)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(copy.apply, rows)) == [template.apply(row) for row in rows]


# Properties

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)
FIELDS = ("text", "title", "options", "label", "score", "scores", "nested", "tree", "none_field")


@settings(max_examples=60, deadline=None)
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, VALUES)))
def test_any_row_renders_or_raises_render_error(row):
    for template in TEMPLATES.values():
        try:
            parts = template.apply(row)
        except RenderError:
            continue
        assert all(isinstance(part, str) for part in parts)


@given(st.lists(st.text("|x ") | st.text(), min_size=2, max_size=2))
def test_pipes_in_a_field_make_no_parts(texts):
    template = Template("t", "<{{ a }}> and ({{ b }}) ||| [{{ a }}]")
    a, b = texts
    assert template.apply({"a": a, "b": b}) == [f"<{a}> and ({b})", f"[{a}]"]


@given(st.text(min_size=0, max_size=5000))
def test_substituted_text_is_cut_at_a_word(text):
    part = Template("t", "<{{ a }}>").apply({"a": text.replace("|", "/")})[0]
    assert len(part) <= 2048 + len("<>") + 5
    if len(text) <= 2048:
        assert part == f"<{text.replace('|', '/')}>"


# Files and collections


def write(path: Path, *names: str, text: str = "{{ a }} ||| b") -> Path:
    path.mkdir(parents=True, exist_ok=True)
    entries = "".join(
        f"  id{i}: !Template\n    name: {name}\n    jinja: '{text}'\n"
        for i, name in enumerate(names)
    )
    (path / "templates.yaml").write_text(f"dataset: x\ntemplates:\n{entries}", encoding="utf-8")
    return path


def test_file_is_read_with_its_metadata():
    template = TEMPLATES["plain"]
    assert list(TEMPLATES) == sorted(TEMPLATES)
    assert template.metadata == Metadata(True, True, ("Accuracy",), ("en",))
    assert TEMPLATES["no separator"].metadata == Metadata(False, None, ("BLEU", "ROUGE"), ())
    assert template.reference == "written for this test"


BOMB = "x0: &a0 [z, z]\n" + "".join(f"x{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("templates: [", "while parsing"),
        ("a: 1", "no mapping `templates:`"),
        ("templates: {a: 1}", "'a' is not a !Template"),
        ("templates: {a: !Template {name: n}}", "template 'n': field jinja is None"),
        ("templates: {a: !Template {name: 5, jinja: x}}", "field name is 5"),
        ("templates: {a: !Template {name: n, jinja: x, answer_choices: [1]}}", "answer_choices"),
        ("templates: {a: !!python/object/apply:os.system ['touch pwned']}", "could not determine"),
        ("templates: {a: 1, a: 2}", "key 'a' occurs twice"),
        (
            "templates: {a: !Template {name: n, jinja: x}, b: !Template {name: n, jinja: y}}",
            "two templates are named 'n'",
        ),
        ("templates: " + "[" * 3000, "templates.yaml"),
        ("templates: {a: !Template {name: n, jinja: !!bool maybe}}", "'maybe' is no bool"),
        ("templates: {a: !Template {name: n, jinja: !!timestamp foo}}", "'foo' is no timestamp"),
        ("templates: {a: !Template {name: n, jinja: x, id: 2020-40-40}}", "is no timestamp"),
        ("templates: {a: !Template {name: n, jinja: x, id: " + "9" * 5000 + "}}", "is no int"),
        (BOMB + "templates: {a: !Template {name: *a59, jinja: x}}", "aliases written out"),
        (BOMB + "templates: {a: !Template {name: n, jinja: x, id: *a59}}", "aliases written out"),
        ("a: &a [*a]\ntemplates: *a", "aliases written out"),
        ("a: &a " + "x" * 10**5 + "\ntemplates: [" + "*a, " * 999 + "]", "aliases written out"),
    ],
)
def test_bad_file_is_named_in_one_line(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "templates.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_templates(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "pwned").exists()


def test_collection_searches_directories_in_order(tmp_path):
    write(tmp_path / "one/data", "b", "a")
    write(tmp_path / "two/data", "other")
    write(tmp_path / "two/data/part", "p")
    write(tmp_path / "two/Zaid/expanded", "z")
    write(tmp_path / "two/user/data/part", "q")
    collection = TemplateCollection([tmp_path / "one", tmp_path / "two"])
    keys = [("Zaid/expanded", None), ("data", None), ("data", "part"), ("user/data", "part")]
    assert collection.datasets() == keys
    assert list(collection.get("data")) == ["a", "b"]
    assert list(collection.get("user/data", "part")) == ["q"]
    assert [(d, s, t.name) for d, s, t in collection.templates()][-1] == ("user/data", "part", "q")
    with pytest.raises(LookupError, match=r"no templates for dat .*did you mean data"):
        collection.get("dat")


def test_file_that_cannot_be_read_leaves_the_others(tmp_path):
    write(tmp_path / "good", "a")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/templates.yaml").write_text("templates: {a: !!bool maybe}")
    collection, unread = TemplateCollection([tmp_path]), []
    assert [d for d, *_ in collection.templates(unread.append)] == ["good"]
    assert len(unread) == 1
    assert "bad/templates.yaml: 'maybe' is no bool" in unread[0]
    with pytest.raises(ValueError, match="is no bool"):
        list(collection.templates())


def test_default_collection_order(tmp_path, monkeypatch):
    write(tmp_path / "mine/data", "mine")
    write(tmp_path / "cache/prompts/data", "installed")
    write(tmp_path / "cache/prompts/more", "installed")
    write(tmp_path / "site/promptsource/templates/other", "package")
    (tmp_path / "site/promptsource/__init__.py").write_text("raise SystemExit('was run')")
    monkeypatch.setenv("T0X_PROMPTS_DIR", str(tmp_path / "mine"))
    monkeypatch.setenv("T0X_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    collection = default_collection()
    assert list(collection.get("data")) == ["mine"]
    assert list(collection.get("more")) == ["installed"]
    assert list(collection.get("other")) == ["package"]
    assert any(dataset == "mini" for dataset, _ in collection.datasets())  # t0x's own
    monkeypatch.setenv("T0X_PROMPTS_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        default_collection()


def test_own_prompts_compile():
    names = {dataset for dataset, _ in TemplateCollection([Path("tasks/prompts")]).datasets()}
    own = TemplateCollection([Path(__file__).parents[3] / "tasks/prompts"])
    assert names <= {dataset for dataset, _ in own.datasets()}
    problems = [(d, s, t.name, t.problem()) for d, s, t in own.templates() if t.problem()]
    assert problems == []


def test_import_is_light():
    code = """
        import sys
        import t0x.prompts, t0x.prompts, t0x.cli.prompts
        heavy = {"tensorflow", "jax", "seqio", "requests", "rich.table"} & set(sys.modules)
        sys.exit(str(heavy) if heavy else 0)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
