"Guards on the repository: imports flow one way, notebooks and package agree, code can be read."
import ast, io, json, os, re, shutil, subprocess, sys, tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT/'mcls_nb'
NOTEBOOKS = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
API = [p for p in NOTEBOOKS if p.parent.name == 'api']
def is_run(path): return path.name.startswith('run_') or path.parent.name == 'apps'

RUNS = list(filter(is_run, NOTEBOOKS)) # parameters, no code of their own
PYTHON = [*sorted(ROOT.glob('tests/*.py')), *sorted(ROOT.glob('tools/*.py')), ROOT/'setup.py']
FILES = [p for p in sorted(PACKAGE.rglob('*.py')) if p.name[0] != '_']
MODULES = {'.'.join(p.relative_to(PACKAGE).with_suffix('').parts): p for p in FILES}
PACKAGES = {'mcls_nb'} | {f'mcls_nb.{p.parent.name}' for p in PACKAGE.glob('*/__init__.py')}
WITHOUT_TORCH = ('core', 'features', 'statistics', 'videos.media', 'plots', 'explanation_plots',
                 'architecture', 'panel', 'widgets')
PATH = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
COMMANDS = {k: v for k, v in os.environ.items() if k != 'IN_TEST'} # else nbdev_export does nothing
COMMANDS |= dict(PATH=PATH, PYTHONUTF8='1')

def call(*command, cwd=ROOT):
    "Run a program; what it printed."
    how = dict(cwd=cwd, env=COMMANDS, check=True, capture_output=True, text=True)
    return subprocess.run(list(map(str, command)), **how).stdout


def cells(path): return json.loads(path.read_text('utf-8'))['cells']
def source(cell): return ''.join(cell['source'])
def code(path): return [c for c in cells(path) if c['cell_type'] == 'code']
def code_of(cell): return re.sub(r'^\s*[%!].*$', '', source(cell), flags=re.M) # without magics
def name_of(path): return str(path.relative_to(ROOT))

def exported_to(path):
    "The module that a notebook is exported to."
    found = (re.match(r'#\|\s*default_exp\s+(\S+)', source(c)) for c in code(path))
    return next((m[1] for m in found if m), None)


# --- rooms: from the ground up, in the order of their notebooks

ORDER = [m for m in map(exported_to, API) if m]

def imported(text, module):
    "Our modules that a module's text imports, wherever in it."
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import): names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ('mcls_nb.' + module).split('.')[:-node.level] if node.level else []
            base = '.'.join(base + ([node.module] if node.module else []))
            modules = base in PACKAGES # else names
            names = [f'{base}.{a.name}' for a in node.names] if modules else [base]
        else: continue
        yield from (n.removeprefix('mcls_nb.') for n in names if n.startswith('mcls_nb'))

def test_imports_are_read_in_every_form():
    text = '''import torch, mcls_nb.text
from .fusion import a
from ..core import b
from .. import plots
from mcls_nb.retrieve import index
def f(): from mcls_nb.worlds.tv import c'''
    due = {'text', 'summarize.fusion', 'core', 'plots', 'retrieve.index', 'worlds.tv'}
    assert set(imported(text, 'summarize.models')) == due

def test_every_room_has_one_notebook():
    assert sorted(ORDER) == sorted(MODULES) and len(set(ORDER)) == len(ORDER)

@pytest.mark.parametrize('module', MODULES)
def test_imports_flow_one_way(module):
    used = set(imported(MODULES[module].read_text('utf-8'), module))
    later = used - {'__version__', *ORDER[:ORDER.index(module)]}
    assert not later, f'{module} imports {sorted(later)}, which does not stand before it'
    half = module.split('.')[0]
    other = dict(summarize='retrieve.', retrieve='summarize.').get(half)
    strange = [m for m in used if other and m.startswith(other)]
    assert not strange, 'summarize and retrieve know nothing of each other'

@pytest.mark.parametrize('module', WITHOUT_TORCH)
def test_light_modules_do_without_torch(module):
    program = f'import sys, mcls_nb.{module}; print("torch" in sys.modules)'
    assert call(sys.executable, '-c', program) == 'False\n'


# --- notebooks and what is made from them

@pytest.fixture(scope='module')
def remade(tmp_path_factory):
    "A copy of the repository's source after exporting, cleaning and linking."
    copy = tmp_path_factory.mktemp('copy')
    left_out = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints')
    for name in ('nbs', 'mcls_nb', 'tools'): shutil.copytree(ROOT/name, copy/name, ignore=left_out)
    shutil.copy(ROOT/'settings.ini', copy)
    for command in (['nbdev_export'], ['nbdev_clean'], [sys.executable, 'tools/links.py']):
        call(*command, cwd=copy)
    return copy

def test_exporting_and_cleaning_change_nothing(remade):
    def files(root):
        paths = [*(root/'nbs').rglob('*.ipynb'), *(root/'mcls_nb').rglob('*.py')]
        paths = [p for p in paths if '.ipynb_checkpoints' not in p.parts]
        return {str(p.relative_to(root)): p.read_bytes() for p in paths}
    ours, theirs = files(ROOT), files(remade)
    differ = sorted(f for f in ours | theirs if ours.get(f) != theirs.get(f))
    how = 'run nbdev_clean && nbdev_export && python tools/links.py'
    assert not differ, f'{how}: {", ".join(differ)}'

@pytest.mark.parametrize('name', ['index', 'results'])
def test_no_measured_number_is_typed(name):
    "Numbers with a decimal point come from cells; overlaps and versions are no measurements."
    text = '\n'.join(source(c) for c in cells(ROOT/'nbs'/f'{name}.ipynb')
                     if c['cell_type'] == 'markdown')
    text = re.sub(r'```.*?```|`[^`]*`|\]\([^)]*\)|^    .*$', '', text, flags=re.S | re.M)
    text = re.sub(r'IoU (?:of at least )?0?\.\d|Python 3\.\d+|Apache-2\.0', '', text)
    typed = re.findall(r'.{0,30}\d*\.\d+.{0,20}', text)
    assert not typed, f'{typed}: compute it in a cell'

def test_readme_is_the_rendered_index(tmp_path):
    call(sys.executable, 'tools/readme.py', tmp_path)
    for p in (p for p in tmp_path.rglob('*') if p.is_file()):
        same = p.read_bytes() == (ROOT/p.relative_to(tmp_path)).read_bytes()
        assert same, f'run python tools/readme.py: {p.name} differs'

@pytest.mark.parametrize('path', NOTEBOOKS, ids=name_of)
def test_links_lead_somewhere(path):
    text = '\n'.join(source(c) for c in cells(path) if c['cell_type'] == 'markdown')
    targets = re.findall(r'\]\(([^)#\s]+)', text)
    lost = [t for t in targets if '://' not in t and not (path.parent/t).exists()]
    assert not lost, f'{lost} are not there'
    index = any(t.endswith('index.ipynb') for t in targets) or path.name == 'index.ipynb'
    assert index, 'no link to the index: run python tools/links.py'

@pytest.mark.parametrize('path', NOTEBOOKS, ids=name_of)
def test_notebooks_stay_small(path):
    assert path.stat().st_size <= 200_000 and len(cells(path)) <= 82 # with the links
    for cell in code(path): assert len(source(cell).splitlines()) <= 60, source(cell)[:200]

@pytest.mark.parametrize('path', NOTEBOOKS, ids=name_of)
def test_notebooks_store_no_widgets(path):
    text = path.read_text('utf-8')
    assert 'widgets' not in json.loads(text)['metadata']
    assert 'application/vnd.jupyter.widget' not in text


# --- reading

@pytest.mark.parametrize('path', NOTEBOOKS + PYTHON, ids=name_of)
def test_lines_of_code_fit_a_page(path):
    notebook = path.suffix == '.ipynb'
    texts = [source(c) for c in code(path)] if notebook else [path.read_text('utf-8')]
    long = [line for text in texts for line in text.splitlines() if len(line) > 100]
    assert not long, f'{len(long)} lines are over 100 columns, e.g. {long[0]}'

def top_names(tree):
    "Names that a module defines at its top, but for nbdev's own."
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)): yield node.name
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                parts = target.elts if isinstance(target, ast.Tuple) else [target]
                names = [t.id for t in parts if isinstance(t, ast.Name)]
                yield from (n for n in names if n not in ('__all__', '_all_'))

def test_what_carries_the_idea_is_public():
    names = [n for p in MODULES.values() for n in top_names(ast.parse(p.read_text('utf-8')))]
    private = sum(n[0] == '_' for n in names) / len(names)
    assert private < .35, f'{private:.0%} of {len(names)} names are private'

def defined(text):
    "Public names that a module defines at its top, without methods that are patched onto a class."
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign): nodes = [n for t in node.targets for n in ast.walk(t)]
        elif any('patch' in ast.dump(d) for d in getattr(node, 'decorator_list', ())): continue
        else: nodes = [node]
        names = [getattr(n, 'id', getattr(n, 'name', '_')) for n in nodes]
        yield from (n for n in names if not n.startswith('_'))

def test_one_name_is_one_thing():
    rooms = {}
    for module, path in MODULES.items():
        for name in set(defined(path.read_text('utf-8'))): rooms.setdefault(name, []).append(module)
    twice = {name: where for name, where in rooms.items() if len(where) > 1}
    assert not twice and len(rooms) > 500

@pytest.mark.parametrize('module', MODULES)
def test_titles_of_rooms_fit_a_page(module):
    title = MODULES[module].read_text('utf-8').splitlines()[0]
    assert len(title) <= 100, f'{title}: shorten the quote below the title of its notebook'

@pytest.mark.parametrize('module', MODULES)
def test_rooms_stay_small(module):
    lines = [line.strip() for line in MODULES[module].read_text('utf-8').splitlines()]
    written = [line for line in lines if line and not line.startswith('# %%')]
    assert len(written) < 500, f'{len(written)} lines: move a wall'

@pytest.mark.parametrize('module', MODULES)
def test_public_names_have_docstrings(module):
    tree = ast.parse(MODULES[module].read_text('utf-8'))
    assert ast.get_docstring(tree), 'the notebook needs its `> one line`'
    defined = [n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    bare = [n.name for n in defined if n.name[0] != '_' and not ast.get_docstring(n)]
    bare = [n for n in bare if n != 'forward']
    assert not bare, f'without docstring: {", ".join(bare)}'


# --- experiments

@pytest.mark.parametrize('path', RUNS, ids=name_of)
def test_run_has_one_cell_of_parameters(path):
    tagged = [c for c in cells(path) if 'parameters' in c['metadata'].get('tags', [])]
    assert len(tagged) == 1, 'exactly one cell has the tag parameters'
    tokens = tokenize.generate_tokens(io.StringIO(source(tagged[0])).readline)
    comments = {t.end[0] for t in tokens if t.type == tokenize.COMMENT}
    for node in ast.parse(source(tagged[0])).body:
        fine = isinstance(node, ast.AnnAssign) and node.value
        assert fine, f'line {node.lineno}: write `name: type = value # meaning`'
        ast.literal_eval(node.value)
        said = node.end_lineno in comments
        assert said, f'line {node.lineno}: say in a comment what the parameter means'

@pytest.mark.parametrize('path', RUNS, ids=name_of)
def test_run_only_uses_the_package(path):
    for cell in code(path):
        exports = re.search(r'^\s*#\s*\|\s*(export|default_exp)', source(cell), re.M)
        assert not exports, 'a run exports nothing'
        nodes = ast.walk(ast.parse(code_of(cell)))
        definitions = [n for n in nodes if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
        assert not definitions, 'a run defines nothing: move it to the library'
        clear = 'jupyter nbconvert --clear-output --inplace'
        assert not cell['outputs'], f'a run is committed without outputs: {clear}'


# --- text

def test_no_path_of_a_machine_is_written_down():
    kinds = ('.py', '.ipynb', '.md', '.ini', '.toml', '.sh', '.csv', '.json', '')
    folders = [ROOT/f for f in ('mcls_nb', 'nbs', 'tests', 'tools', 'results', '.ci')]
    files = [p for f in folders for p in f.rglob('*') if '__pycache__' not in p.parts]
    files = [p for p in [*files, *ROOT.iterdir()] if p.is_file() and p.suffix in kinds]
    for p in (p for p in files if p.name not in ('.git', '.gitconfig')):
        found = re.search(r'(?<![\w.}])/(?:work|home|root|Users)/[\w.]+', p.read_text('utf-8'))
        assert not found, f'{name_of(p)} names {found[0]}'
