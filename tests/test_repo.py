"Guards on the repository itself: one-way imports, notebooks and package in step, nothing stored that does not belong there."
import ast, fnmatch, io, json, os, re, shutil, subprocess, sys, tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT/'mcls_nb'
NOTEBOOKS = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
RUNS = [p for p in NOTEBOOKS if p.name.startswith('run_') or p.parent.name == 'apps'] # chosen by parameters, without code of their own
MODULES = {'.'.join(p.relative_to(PACKAGE).with_suffix('').parts): p for p in sorted(PACKAGE.rglob('*.py')) if p.name[0] != '_'}
COMMANDS = {k: v for k, v in os.environ.items() if k != 'IN_TEST'} # nbdev_export does nothing while IN_TEST is set
COMMANDS |= {'PATH': f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}', 'PYTHONUTF8': '1'}

# Who may import whom: the rooms in their order, each with the earlier rooms that it leans on (and, through them, with theirs).
ROOMS = {
    'core': '', 'text': 'core', 'features': 'core', 'batching': 'core', 'attention': 'batching',
    'transformer': 'attention', 'statistics': 'core', 'training': 'core', 'distill': 'batching',
    'runs': 'core statistics', 'worlds': 'core text features',
    'summarize.data': 'text features batching', 'summarize.fusion': 'transformer',
    'summarize.models': 'summarize.fusion', 'summarize.rnn': 'summarize.models',
    'summarize.decoding': 'text summarize.models', 'summarize.metrics': 'statistics',
    'summarize.recipes': 'training distill summarize.*',
    'videos.media': 'core', 'videos.extractors': 'core text features videos.media',
    'videos.pretrained': 'videos.extractors',
    'retrieve.data': 'text features batching worlds videos.extractors', 'retrieve.scoring': 'batching',
    'videos.tables': 'core', 'videos.pieces': 'videos.media videos.tables',
    'videos.ingest': 'videos.extractors videos.pieces summarize.data retrieve.data',
    'retrieve.encoders': 'transformer retrieve.scoring', 'retrieve.losses': 'retrieve.scoring',
    'retrieve.c3': 'distill training retrieve.*', 'retrieve.index': 'retrieve.data retrieve.scoring',
    'retrieve.metrics': 'retrieve.data', 'retrieve.proposals': 'retrieve.*', 'retrieve.baselines': 'retrieve.*',
    'summarize.rows': 'runs worlds training summarize.*', 'retrieve.rows': 'runs worlds training retrieve.*',
    'experiments': '*', 'explain': 'experiments *', 'grounding': 'explain *', 'plots': 'core', 'widgets': 'plots'}
LIGHT = ['mcls_nb'] + [f'mcls_nb.{m}' for m in ('core', 'features', 'videos.media', 'plots') if m in MODULES] # must do without torch


def cells(path): return json.loads(path.read_text('utf-8'))['cells']
def source(cell): return ''.join(cell['source'])
def code_of(cell): return re.sub(r'^\s*[%!].*$', '', source(cell), flags=re.M) # without magics, so that it parses
def name_of(path): return str(path.relative_to(ROOT))


# --- rooms

def allowed(room):
    "The earlier rooms that `room` may import, directly or through those that it leans on."
    earlier, leans_on = list(ROOMS)[:list(ROOMS).index(room)], ROOMS[room].split()
    direct = {r for r in earlier if any(fnmatch.fnmatch(r, pattern) for pattern in leans_on)}
    return direct.union(*map(allowed, direct))

def imported(text, module):
    "Our modules that a module's text imports, wherever in it."
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import): names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ('mcls_nb.' + module).split('.')[:-node.level] if node.level else []
            base = '.'.join(base + ([node.module] if node.module else []))
            whole = base in ('mcls_nb', 'mcls_nb.summarize', 'mcls_nb.retrieve', 'mcls_nb.videos') # then modules are what is imported
            names = [f'{base}.{a.name}' for a in node.names] if whole else [base]
        else: continue
        yield from (n.removeprefix('mcls_nb.') for n in names if n.startswith('mcls_nb'))

def test_imports_are_read_in_every_form():
    text = '''import torch, mcls_nb.text
from .fusion import a
from ..core import b
from .. import plots
from mcls_nb.retrieve import index
def f(): from mcls_nb.worlds import c'''
    assert set(imported(text, 'summarize.models')) == {'text', 'summarize.fusion', 'core', 'plots', 'retrieve.index', 'worlds'}

def test_table_of_rooms_is_one_way():
    for half, other in (('summarize.', 'retrieve.'), ('retrieve.', 'summarize.')):
        for room in ROOMS: assert not room.startswith(half) or not any(r.startswith(other) for r in allowed(room))
    assert allowed('attention') == {'batching', 'core'} and allowed('plots') == {'core'} and 'retrieve.index' in allowed('experiments')
    assert 'retrieve.index' not in allowed('retrieve.c3') # a room never leans on a later one

@pytest.mark.parametrize('module', MODULES)
def test_imports_flow_one_way(module):
    assert module in ROOMS, f'{module} is a new room: say in ROOMS what it may import'
    found = set(imported(MODULES[module].read_text('utf-8'), module))
    assert found <= allowed(module), f'{module} imports {sorted(found - allowed(module))}, but may import {sorted(allowed(module))} only'

@pytest.mark.parametrize('module', LIGHT)
def test_light_modules_do_without_torch(module):
    code = f'import sys, {module}; print("torch" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True).stdout == 'False\n'


# --- notebooks and what is made from them

@pytest.fixture(scope='module')
def remade(tmp_path_factory):
    "A copy of the repository's source after exporting and cleaning."
    copy = tmp_path_factory.mktemp('copy')
    left_out = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints')
    for name in ('nbs', 'mcls_nb'): shutil.copytree(ROOT/name, copy/name, ignore=left_out)
    shutil.copy(ROOT/'settings.ini', copy)
    for command in ('nbdev_export', 'nbdev_clean'): subprocess.run([command], cwd=copy, env=COMMANDS, check=True, capture_output=True)
    return copy

def test_exporting_and_cleaning_change_nothing(remade):
    files = lambda root: {str(p.relative_to(root)): p.read_bytes() for folder in ('nbs', 'mcls_nb') for kind in ('*.py', '*.ipynb')
                          for p in (root/folder).rglob(kind) if '.ipynb_checkpoints' not in p.parts}
    ours, theirs = files(ROOT), files(remade)
    differ = sorted(f for f in ours | theirs if ours.get(f) != theirs.get(f))
    assert not differ, f'run nbdev_clean && nbdev_export: {", ".join(differ)}'

@pytest.mark.skipif(not (ROOT/'nbs'/'index.ipynb').exists(), reason='There is no index.ipynb yet.')
def test_readme_is_the_rendered_index(tmp_path):
    subprocess.run([sys.executable, ROOT/'tools'/'readme.py', tmp_path], env=COMMANDS, check=True, capture_output=True)
    for p in (p for p in tmp_path.rglob('*') if p.is_file()):
        assert p.read_bytes() == (ROOT/p.relative_to(tmp_path)).read_bytes(), f'run python tools/readme.py: {p.name} differs'

@pytest.mark.parametrize('path', NOTEBOOKS, ids=name_of)
def test_notebooks_stay_small(path):
    assert path.stat().st_size <= 200_000 and len(cells(path)) <= 80
    for cell in cells(path): assert cell['cell_type'] != 'code' or len(source(cell).splitlines()) <= 60, source(cell)[:200]

@pytest.mark.parametrize('path', NOTEBOOKS, ids=name_of)
def test_notebooks_store_no_widgets(path):
    text = path.read_text('utf-8')
    assert 'widgets' not in json.loads(text)['metadata'] and 'application/vnd.jupyter.widget' not in text


# --- experiments

@pytest.mark.parametrize('path', RUNS, ids=name_of)
def test_run_has_one_cell_of_parameters(path):
    tagged = [c for c in cells(path) if 'parameters' in c['metadata'].get('tags', [])]
    assert len(tagged) == 1, 'exactly one cell has the tag parameters'
    comments = {t.end[0] for t in tokenize.generate_tokens(io.StringIO(source(tagged[0])).readline) if t.type == tokenize.COMMENT}
    for node in ast.parse(source(tagged[0])).body:
        assert isinstance(node, ast.AnnAssign) and node.value, f'line {node.lineno}: write `name: type = value # meaning`'
        ast.literal_eval(node.value)
        assert node.end_lineno in comments, f'line {node.lineno}: say in a comment what the parameter means'

@pytest.mark.parametrize('path', RUNS, ids=name_of)
def test_run_only_uses_the_package(path):
    for cell in (c for c in cells(path) if c['cell_type'] == 'code'):
        assert not re.search(r'^\s*#\s*\|\s*(export|default_exp)', source(cell), re.M), 'a run exports nothing'
        definitions = [n for n in ast.walk(ast.parse(code_of(cell))) if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
        assert not definitions, 'a run defines nothing: move it to the library'
        assert not cell['outputs'], 'a run is committed without outputs: jupyter nbconvert --clear-output --inplace'


# --- text

@pytest.mark.parametrize('module', MODULES)
def test_public_names_have_docstrings(module):
    tree = ast.parse(MODULES[module].read_text('utf-8'))
    assert ast.get_docstring(tree), 'the notebook needs its `> one line`'
    bare = [n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name[0] != '_' and not ast.get_docstring(n)]
    assert not bare, f'without docstring: {", ".join(bare)}'

def test_no_path_of_a_machine_is_written_down():
    kinds = ('.py', '.ipynb', '.md', '.ini', '.toml', '.sh', '.csv', '.json', '')
    folders = [ROOT/f for f in ('mcls_nb', 'nbs', 'tests', 'tools', 'results', '.ci')]
    files = [p for f in folders for p in f.rglob('*') if '__pycache__' not in p.parts] + list(ROOT.iterdir())
    for p in (p for p in files if p.is_file() and p.suffix in kinds and p.name not in ('.git', '.gitconfig')):
        found = re.search(r'(?<![\w.}])/(?:work|home|root|Users)/[\w.]+', p.read_text('utf-8'))
        assert not found, f'{name_of(p)} names {found[0]}'
