"The command line on films: its answers are the library's, and each mistake is one sentence."
import importlib, inspect, io, json, os, shlex, signal, subprocess, sys, time
from argparse import SUPPRESS
from configparser import ConfigParser
from pathlib import Path

import numpy as np
import pytest

from mcls_nb import __version__, cli
from mcls_nb.core import DataError

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = [sys.executable, '-m', 'mcls_nb.cli']
ENVIRONMENT = os.environ | dict(
    PYTHONPATH=os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')])),
    PYTHONUTF8='1', OMP_NUM_THREADS='1', COLUMNS='100')


def mcls(*typed, folder, stdin=None):
    "The program as a shell runs it."
    return subprocess.run([*PROGRAM, *map(str, typed)], cwd=folder, env=ENVIRONMENT, input=stdin,
                          capture_output=True, text=True, encoding='utf-8')

def answered(*typed, folder, stdin=None):
    "What a call that went well printed."
    done = mcls(*typed, folder=folder, stdin=stdin)
    assert done.returncode == 0, done.stderr
    assert 'Traceback' not in done.stderr
    return done.stdout

def lines_of(*typed, folder):
    "Answers as JSON."
    return [json.loads(line) for line in answered(*typed, '--json', folder=folder).splitlines()]

def is_one_sentence(said):
    return said.count('\n') == 1 and said.endswith('.\n') and 'Traceback' not in said


@pytest.fixture(scope='module')
def films(tmp_path_factory):
    "A folder with films, a dataset that ingest made of them, two systems and an index."
    for package in ('av', 'pysubs2'): pytest.importorskip(package) # the extra [media]
    folder = tmp_path_factory.mktemp('films')
    make = [sys.executable, ROOT/'tools'/'films.py', 'films', '--number', '6']
    subprocess.run(make, cwd=folder, env=ENVIRONMENT, check=True)
    said = dict(ingest=lines_of('ingest', 'films', 'data', '--workers', 1, folder=folder))
    for system, out in (('NCLS', 'summarizer'), ('mXML', 'finder')):
        how = '--data', 'data', '--preset', 'tiny', '--epochs', 1
        said[system] = answered('train', system, out, *how, folder=folder)
    said['index'] = lines_of('index', 'finder', 'data', 'moments', folder=folder)
    return folder, said


# --- answers

def test_the_report_of_ingest(films):
    folder, said = films
    report = {line['item']: line for line in said['ingest']}
    assert set(report) == {*(f'film{k:02}.mp4' for k in range(6)), 'summaries', 'moments'}
    assert {line['outcome'] for line in said['ingest']} == {'made'}
    assert report['summaries']['about'] == '5 train (en and pt), 1 test (en and pt)'

def test_what_was_trained_is_the_librarys(films):
    from mcls_nb.papers.systems import load, train
    folder, said = films
    for system, out in (('NCLS', 'summarizer'), ('mXML', 'finder')):
        ours = load(folder/out)
        assert said[system].split('\n')[1].split(maxsplit=1) == [out, repr(ours)]
        theirs = train(system, str(folder/'data'), 'tiny', epochs=1)
        assert ours.provenance == theirs.provenance
        networks = [m.networks['0'] if system == 'mXML' else m.network for m in (ours, theirs)]
        a, b = (n.state_dict() for n in networks)
        assert list(a) == list(b) and all(a[k].equal(b[k]) for k in a)
        assert not (folder/f'{out}.work').exists()

@pytest.mark.parametrize('query, language', [('a red ball moves left', 'en'), ('红球向左移动', 'zh')])
def test_search_in_two_languages(films, query, language):
    from mcls_nb.papers.systems import load
    folder, said = films
    assert [(line['language'], line['videos']) for line in said['index']] == [('en', 6), ('zh', 6)]
    theirs = load(folder/'finder').index(path=folder/'moments').search(query, language, 4)
    columns = ['rank', 'video', 'start', 'end']
    ours = lines_of('search', 'finder', query, '--index', 'moments', '-k', 4, folder=folder)
    assert [[line[c] for c in columns] for line in ours] == theirs[columns].values.tolist()
    assert [line['score'] for line in ours] == pytest.approx(theirs.score.tolist(), rel=1e-5)

def test_search_without_an_index_is_the_same_and_a_table_by_default(films, monkeypatch, capsys):
    monkeypatch.chdir(films[0])
    search = 'search', 'finder', '蓝星星向右移动', '-k', '2'
    assert cli.main([*search, '--videos', 'data']) == 0
    headings, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
    assert headings == ['rank', 'video', 'start', 'end', 'score']
    assert cli.main([*search, '--index', 'moments', '--json']) == 0
    ours = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row[:2] for row in rows] == [[str(line['rank']), line['video']] for line in ours]
    for row, line in zip(rows, ours, strict=True):
        numbers = [line[c] for c in ('start', 'end', 'score')]
        assert [float(x) for x in row[2:]] == pytest.approx(numbers, rel=1e-4)

def test_summaries_of_a_dataset_of_a_text_and_of_standard_input(films, capsys):
    from mcls_nb.papers.systems import load
    from mcls_nb.videos.ingest import OwnVideos
    folder, _ = films
    model = load(folder/'summarizer')
    theirs = model.summarize_videos(OwnVideos(folder/'data'))
    ours = lines_of('summarize', 'summarizer', '--own', 'data', folder=folder)
    assert {line['video']: line['summary'] for line in ours} == theirs
    text = 'Agora a estrela azul vai para a direita.'
    piped = answered('summarize', 'summarizer', '-', folder=folder, stdin=text)
    assert piped == model(text).text + '\n'
    assert cli.main(['summarize', str(folder/'summarizer'), text]) == 0
    assert capsys.readouterr().out == piped

def test_a_system_that_looks(films, capsys):
    from mcls_nb.papers.systems import load
    from mcls_nb.videos.extractors import PixelFeatures, extract_video
    folder, _ = films
    model, film, text = str(folder/'watcher'), folder/'films'/'film00.mp4', 'Agora a bola vai.'
    how = '--data', str(folder/'data'), '--preset', 'tiny', '--epochs', '1'
    assert cli.main(['train', 'VDF', model, *how]) == 0
    capsys.readouterr()
    rows = extract_video(film, PixelFeatures())
    np.save(folder/'rows.npy', rows)
    theirs = load(model)(text, rows).text
    for video in (film, folder/'rows.npy'):
        assert cli.main(['summarize', model, '--video', str(video), text]) == 0
        assert capsys.readouterr().out == theirs + '\n'
    assert cli.main(['summarize', model, text]) == 2
    assert 'video 0: is missing' in capsys.readouterr().err

def test_the_doctor(films, capsys):
    folder, _ = films
    at = lambda name: str(folder/name)
    def doctor(*typed):
        code = cli.main(['doctor', *typed])
        out, err = capsys.readouterr()
        assert not err
        return code, out
    code, out = doctor(at('data'), '--model', at('finder'))
    assert code == 0 and 'all is well; 6 sets of features, which' in out
    code, out = doctor(at('summarizer'))
    assert code == 0 and 'all is well; a VideoSummarizer (system NCLS, preset tiny, seed 0' in out
    (folder/'bad').mkdir()
    np.save(folder/'bad'/'a.npy', np.full((3, 2), np.nan))
    np.save(folder/'bad'/'b.npy', np.zeros((3, 2), np.float32))
    code, out = doctor(at('bad'), '--json')
    said = [json.loads(line)['about'] for line in out.splitlines()]
    assert code == 1 and len(said) == 1 and 'a.npy: row 0 holds NaN' in said[0]
    code, out = doctor(at('data/video_action_features'), '--model', at('finder'))
    assert code == 1 and 'reads other' in out and 'rows than' in out
    broken = folder/'broken'
    broken.mkdir()
    for file in (folder/'finder').iterdir(): (broken/file.name).write_bytes(file.read_bytes())
    with open(broken/'model.safetensors', 'r+b') as f: f.truncate(1000)
    code, out = doctor(str(broken))
    assert code == 1 and 'model.safetensors' in out

def test_a_model_that_does_not_fit_the_rows(films, capsys):
    from mcls_nb.videos.extractors import PixelFeatures
    from mcls_nb.videos.ingest import ingest
    folder, _ = films
    ingest(folder/'films', folder/'closer', video=PixelFeatures(fps=10), workers=1)
    capsys.readouterr()
    assert cli.main(['doctor', str(folder/'closer'), '--model', str(folder/'finder')]) == 1
    assert 'pixels at 10 frames' in capsys.readouterr().out


# --- mistakes: one sentence, exit code 2, nothing on standard output

TYPED = [ # what, a part of the sentence
    ('', 'which command'), ('serch', "did you mean 'search'?"), ('train', 'required: system, out'),
    ('train VDF', 'required: out'),
    ('train NCLS out --sed 3', "did you mean '--seed'?"), ('train NCLS out --see 3', "'--see'"),
    ('train NCLS out --seed three', "invalid int value: 'three'"),
    ('train NCLS out more', "'more' is one word too many"), ('train NCLS out --pdb', "'--pdb'"),
    ('search m a red ball', "'red' is one word too many"), ('search m x -k two', 'invalid int'),
    ('search m x', 'either --index or --videos'), ('search m x --index i --videos v', 'either'),
    ('summarize m', 'either a text or --own'), ('summarize m text --own data', 'either a text'),
    ('summarize m text --names a', '--names'), ('summarize m --own d --video v', '--video'),
    ('ingest films out --workers 0', '0 are too few'), ('doctor nowhere', 'no such file or folder'),
    ('app momnets', "did you mean 'moments'?")]

@pytest.mark.parametrize('typed, words', TYPED, ids=lambda x: None)
def test_mistakes_that_show_at_once(typed, words, tmp_path):
    done = mcls(*typed.split(), folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, '') and is_one_sentence(done.stderr), done.stderr
    assert words in done.stderr and list(tmp_path.iterdir()) == []

MISTAKES = [ # what, a part of the sentence
    ('train VFD out', "there is no system 'VFD'; did you mean 'VDF'?"),
    ('train NCLS out --data nowhere', 'nowhere: there is no such folder'),
    ('train NCLS out --data films', 'films'), ('train mXML out --data films', 'films'),
    ('train NCLS out --preset huge', "there is no preset 'huge'"),
    ('train NCLS out --epochs 0', 'parameter epochs: 0 is not a possible value'),
    ('train NCLS films', "holds ['film00"), ('train NCLS finder', 'is not a VideoSummarizer'),
    ('summarize finder text', 'finder: is a MomentFinder, but this takes a VideoSummarizer'),
    ('summarize nowhere text', 'nowhere: there is no such folder'),
    ('summarize organisation/model text', 'there is no such folder'),
    ('summarize films text', 'films: holds no config.json'),
    ('summarize summarizer --own films', 'films: is no dataset of own videos'),
    ('summarize summarizer --own data --names film00,flim01', "did you mean 'film01'?"),
    ('summarize summarizer text --video none.npy', 'none.npy: there is no such file'),
    ('summarize summarizer text --video films/film00.npy', 'there is no such file'),
    ('index summarizer data out', 'summarizer: is a VideoSummarizer'),
    ('index finder films out', 'films: holds no'), ('index finder data data', 'which is no index'),
    ('index finder data films/queries.csv', 'queries.csv: is a file'),
    ('train NCLS films/queries.csv/out', 'cannot be written to'),
    ('search finder text --index nowhere', 'nowhere'),
    ('search finder text --videos films', 'films'),
    ('search other text --index moments', 'was built with other weights'),
    ('search finder text --index moments -k 0', '0 answers are none'),
    ('search finder porta --language pt --index moments', "there is no language 'pt'"),
    ('ingest nowhere out', 'nowhere: there is no such folder'),
    ('ingest empty out', 'empty: holds no video'),
    ('ingest useless out', 'useless: holds no video that can be used'),
    ('ingest films films', 'films: exists and is not a dataset'),
    ('ingest films films/queries.csv', 'queries.csv: exists and is not a dataset, but a file'),
    ('ingest films out --overlap 100', 'windows of 100 clips cannot share 100'),
    ('doctor data --model nowhere', 'nowhere'), ('doctor moments', 'is an index, not features'),
    ('app moments dada=x', "did you mean 'data'?"),
    ('app moments epochs=many', "'many' is not a whole number")]

@pytest.fixture(scope='module')
def mistaken(films):
    "The folder of films with some more that are of no use."
    from mcls_nb.papers.systems import load
    from mcls_nb.retrieve.encoders import MXML
    folder, _ = films
    (folder/'empty').mkdir()
    (folder/'useless').mkdir()
    (folder/'useless'/'a.mp4').write_bytes(b'no film')
    other = load(folder/'finder')
    network = MXML(other.networks['0'].cfg)
    other.systems = dict.fromkeys(other.systems, network.eval())
    other.save_pretrained(folder/'other')
    return folder

@pytest.mark.parametrize('typed, words', MISTAKES, ids=lambda x: None)
def test_mistakes_that_show_later(typed, words, mistaken, monkeypatch, capsys):
    if typed.startswith('app'): pytest.importorskip('voila') # the extra [app]
    monkeypatch.chdir(mistaken)
    there = lambda: {p.name for p in mistaken.iterdir()}
    before = there()
    assert cli.main(typed.split()) == 2
    out, err = capsys.readouterr()
    assert out == '' and is_one_sentence(err) and words in err, err
    finished = {'out.work', '.locks'} if typed.startswith('ingest') else set() # pieces are kept
    assert there() - before <= finished

@pytest.mark.parametrize('typed', [('summarize', 'summarizer', '-'),
                                   ('search', 'finder', ' ', '--index', 'moments')])
def test_an_empty_text(typed, films, monkeypatch, capsys):
    monkeypatch.chdir(films[0])
    monkeypatch.setattr(sys, 'stdin', io.StringIO(' \n'))
    assert cli.main(typed) == 2
    out, err = capsys.readouterr()
    assert out == '' and is_one_sentence(err) and 'empty' in err


# --- the program itself

def test_the_program_of_the_package():
    config = ConfigParser(delimiters=['='])
    config.read(ROOT/'settings.ini', encoding='utf-8')
    name, module, function = config['DEFAULT']['console_scripts'].replace('=', ':').split(':')
    assert (name, getattr(importlib.import_module(module), function)) == ('mcls', cli.main)

def test_version_and_overview(tmp_path):
    assert answered('--version', folder=tmp_path) == f'mcls {__version__}\n'
    said = answered('--help', folder=tmp_path)
    for name in cli.COMMANDS: assert f'\n  {name} ' in said
    assert said.split('examples:\n')[1].count('  mcls ') == 3

@pytest.mark.parametrize('name', cli.COMMANDS)
def test_help_reads_like_a_manual(name, tmp_path):
    said = answered(name, '--help', folder=tmp_path)
    assert said.startswith(f'usage: mcls {name} ') and f'\nexample:\n  mcls {name} ' in said
    assert max(map(len, said.splitlines())) <= 100
    shown = [a for a in cli.command_parser(name, cli.COMMANDS[name])._actions if a.help != SUPPRESS]
    assert len(shown) >= 3
    for a in shown:
        assert a.help and len(a.help.split()) > 1, f'{name} {a.dest} has no help'
        given = a.option_strings and a.nargs != 0 # not a switch
        assert not given or 'default' in a.help, f'{name} {a.dest}: its default is not told'

def test_help_needs_no_torch():
    code = 'import sys, mcls_nb.cli as c; c.main(["--help"]); print("torch" in sys.modules)'
    command = [sys.executable, '-c', code]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.stdout.endswith('False\n')

def test_examples_have_the_arguments_of_their_commands():
    texts = [cli.overview(), *(inspect.getdoc(c) for c in cli.COMMANDS.values())]
    found = [line for text in texts for line in text.splitlines() if line.startswith('  mcls ')]
    assert len(found) == 3 + len(cli.COMMANDS)
    for line in found:
        _, name, *typed = shlex.split(line)
        cli.arguments(cli.command_parser(name, cli.COMMANDS[name]), typed)

def test_a_bug_of_ours_keeps_its_traceback(monkeypatch):
    def doctor(path:str): # features
        "Break."
        raise ValueError('a bug')
    monkeypatch.setitem(cli.COMMANDS, 'doctor', doctor)
    with pytest.raises(ValueError, match='a bug') as e: cli.main(['doctor', 'x'])
    assert not isinstance(e.value, DataError)

def test_ctrl_c_while_training_and_on_again(tmp_path):
    typed = 'train', 'NCLS', 'model', '--preset', 'tiny', '--epochs', '2000'
    def listen(): signal.signal(signal.SIGINT, signal.SIG_DFL) # in the background none is heard
    process = subprocess.Popen([*PROGRAM, *typed], cwd=tmp_path, env=ENVIRONMENT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=listen)
    begin = time.monotonic()
    kept = lambda: list(tmp_path.glob('model.work/*/train/last.safetensors'))
    while not kept() and process.poll() is None and time.monotonic() - begin < 60: time.sleep(.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, out) == (130, '')
    assert err.endswith('Stopped.\n') and 'Traceback' not in err
    assert kept() and not (tmp_path/'model').exists()

def test_an_app_gets_its_parameters_and_the_working_folder(monkeypatch, tmp_path):
    pytest.importorskip('voila') # the extra [app]
    monkeypatch.chdir(tmp_path)
    seen = []
    def run(command):
        book = json.loads(Path(command[-1]).read_text('utf-8'))
        seen.append((command[1:3], [''.join(c['source']) for c in book['cells']]))
        return subprocess.CompletedProcess(command, 7)
    monkeypatch.setattr(cli.subprocess, 'run', run)
    assert cli.main(['app', 'moments', 'epochs=3', 'data=a=b']) == 7
    [(program, cells)] = seen
    assert program == ['-m', 'voila'] and cells[0] == f'import os\nos.chdir({str(tmp_path)!r})'
    injected = next(c for c in cells if c.startswith('# Parameters'))
    assert injected == '# Parameters\nepochs = 3\ndata = "a=b"\n'

@pytest.mark.parametrize('lacks, words', [('voila', 'the package Voila is not installed'),
                                          ('notebook', 'clone the repository of mcls_nb')])
def test_an_app_that_cannot_start(lacks, words, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    if lacks == 'voila': monkeypatch.setitem(sys.modules, 'voila', None)
    else: monkeypatch.setattr(cli, '__file__', str(tmp_path/'site-packages'/'mcls_nb'/'cli.py'))
    assert cli.main(['app', 'moments']) == 2
    out, err = capsys.readouterr()
    assert out == '' and is_one_sentence(err) and words in err
