"""What users get wrong, end to end: each mistake is answered by one sentence that names the place
and the remedy, and leaves nothing behind."""
import os, shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from mcls_nb.core import DataError
from mcls_nb.features import HOW2_ACTION, FeatureFolder, FeatureStore
from mcls_nb.papers.runs import Run
from mcls_nb.summarize.data import Corpus, save_how2
from mcls_nb.summarize.models import Summarizer, SummarizerConfig
from mcls_nb.text import Vocab
from mcls_nb.checkpoints import load_weights, save_checkpoint


@pytest.fixture(scope='module')
def sound(tmp_path_factory):
    "A small corpus in the released layout, with dictionaries."
    corpus = Run('VDF', 'tiny').open()
    splits = {s: r[:4] for s, r in corpus.splits.items()}
    def widened(x): return np.pad(x, ((0, 0), (0, HOW2_ACTION.width - x.shape[1])))
    ids = [r.id for records in splits.values() for r in records]
    features = {i: widened(corpus.features[i]) for i in ids}
    folder = tmp_path_factory.mktemp('how2')
    save_how2(Corpus('how2', splits, features), folder)
    corpus.vocab('en').save(folder/'dict.all_en')
    corpus.vocab('pt').save(folder/'dict.src_pt')
    return folder

@pytest.fixture
def folder(sound, tmp_path):
    "A copy of it to break."
    shutil.copytree(sound, tmp_path/'how2')
    return tmp_path/'how2'

def first_features(folder, split='train'):
    first = (folder/f'{split}_action.txt').read_text().split('\n')[0]
    return folder/'video_action_features'/f'{first}.npy'

def rows(folder): return np.load(first_features(folder), allow_pickle=False)
def edit(path, change): path.write_text(change(path.read_text('utf-8')), 'utf-8')
def with_nan(x): x[1, 2] = np.nan; return x

# What may be done to a folder.

def remove(*patterns):
    def act(folder):
        for pattern in patterns:
            for path in folder.glob(pattern): path.unlink()
    return act

def write(name, text): return lambda f: (f/name).write_text(text)

def change_lines(name, change):
    return lambda f: edit(f/name, lambda text: '\n'.join(change(text.split('\n'))))

def save_rows(change): return lambda f: np.save(first_features(f), change(rows(f)))

def save_objects(folder):
    np.save(first_features(folder), np.array([{'a': 1}], dtype=object), allow_pickle=True)

def write_features(data): # bytes, or what makes them from those that were there
    def act(folder):
        file = first_features(folder)
        file.write_bytes(data(file.read_bytes()) if callable(data) else data)
    return act

def save_as_latin(folder):
    file = folder/'train_art_pt.txt'
    file.write_bytes(file.read_text('utf-8').replace('ã', 'é').encode('latin-1'))

MISTAKES = { # what is done to the folder -> what the sentence must name
    'no transcripts': (remove('train_art_en.txt', 'train_art_pt.txt'),
                       'there are no transcripts for train'),
    'no Portuguese': (remove('train_art_pt.txt', 'val_art_pt.txt', 'test_art_pt.txt'),
                      "no transcript of .* 'pt'|'pt'"),
    'no summaries': (remove('test_sum.txt'), 'test_sum.txt: the summaries are missing'),
    'no video names': (remove('val_action.txt'), 'val_action.txt: the video names are missing'),
    'no training split': (remove('train_*'), r'no files train_\*\.txt'),
    'no test split': (remove('test_*'), r'no files test_\*\.txt'),
    'a line too few': (change_lines('train_art_pt.txt', lambda l: l[:-1]),
                       'train_art_pt.txt: 3 lines, but train_sum.txt has 4'),
    'a line too many': (change_lines('train_sum.txt', lambda l: l + ['one more .']),
                        'train_sum.txt has 5'),
    'empty transcript': (change_lines('train_art_pt.txt', lambda l: [l[0], '', *l[2:]]),
                         'train_art_pt.txt: line 2 is empty'),
    'empty summary': (change_lines('test_sum.txt', lambda l: ['   ', *l[1:]]),
                      'test_sum.txt: line 1 is empty'),
    'empty split': (lambda f: [p.write_text('') for p in f.glob('val_*.txt')],
                    'val_sum.txt: is empty'),
    'not UTF-8': (save_as_latin, 'train_art_pt.txt: byte .* is not UTF-8'),
    'a video twice': (change_lines('train_action.txt', lambda l: [l[0], l[0], *l[2:]]),
                      'is listed twice'),
    'features missing': (lambda f: first_features(f).unlink(), 'have no features'),
    'feature folder missing': (lambda f: shutil.rmtree(f/'video_action_features'),
                               'video_action_features'),
    'features truncated': (write_features(lambda data: data[:5000]), r'\.npy'),
    'features empty file': (write_features(b''), r'\.npy'),
    'features of another width': (save_rows(lambda x: x[:, :512]), '512'),
    'NaN in features': (save_rows(with_nan), 'NaN'),
    'infinity in features': (save_rows(lambda x: x + np.inf), r'\.npy'),
    'no frames': (save_rows(lambda x: x[:0]), r'\.npy'),
    'one dimension': (save_rows(lambda x: x[0]), r'\.npy'),
    'pickled objects': (save_objects, r'\.npy'),
    'text named npy': (write_features(b'not an array'), r'\.npy'),
    'dictionary without counts': (write('dict.src_pt', 'casa\nrua\n'),
                                  'dict.src_pt: line 1 is not'),
    'dictionary with specials': (write('dict.src_pt', '<pad> 1\ncasa 3\n'),
                                 'dict.src_pt: <pad> is listed as a word'),
    'dictionary with a word twice': (write('dict.all_en', 'a 3\na 2\n'),
                                     "dict.all_en: 'a' is listed twice"),
    'empty dictionary': (write('dict.all_en', ''), 'dict.all_en: the dictionary is empty'),
}

def one_sentence(error, out=None):
    "Short, on one line, ends with a full stop; and nothing half-written is left."
    text = str(error)
    assert '\n' not in text and text.endswith('.') and len(text) < 600, text
    left = [p for p in out.rglob('*') if p.suffix == '.tmp' or p.name[0] == '.'] if out else []
    assert not left, left

@pytest.mark.parametrize('mistake', MISTAKES)
def test_a_broken_folder_is_explained(folder, tmp_path, mistake):
    breaks, says = MISTAKES[mistake]
    breaks(folder)
    run, runs = Run('VDF', 'tiny', data=str(folder), smoke=True), tmp_path/'runs'
    with pytest.raises(DataError, match=says) as e: run.result(runs)
    one_sentence(e.value, runs)
    assert not list(runs.rglob('*.csv')) and not list(runs.rglob('*.safetensors'))

def test_the_sound_folder_runs(sound, tmp_path):
    result = Run('VDF', 'tiny', data=str(sound), smoke=True).result(tmp_path)
    assert (result.folder/'rows.csv').exists() and len(result.scores.summaries) == 4

def test_content_decides_which_run_it_is(folder, monkeypatch):
    "Not names, sizes and times; nor where the data lie, nor what nobody reads."
    about = lambda **more: Run('VDF', 'tiny', **{'data': str(folder), **more}).name
    before, features = about(), first_features(folder)
    kept, other = features.read_bytes(), rows(folder).copy()
    other[0, 0] += 1
    np.save(features, other)
    assert features.stat().st_size == len(kept) and about() != before # one number
    features.write_bytes(kept)
    assert about() == before
    for name, letter in (('train_sum.txt', 'a'), ('test_art_pt.txt', 'a'), ('dict.all_en', 'e')):
        text = (folder/name).read_text('utf-8')
        (folder/name).write_text(text.replace(letter, 'x', 1), 'utf-8')
        assert about() != before, name
        (folder/name).write_text(text, 'utf-8')
        os.utime(folder/name, (0, 0))
        assert about() == before, name # the same content at another time
    unread = '.DS_Store', 'video_action_features/.DS_Store', 'thesis.tex', 'runs/vdf/rows.csv'
    for name in unread:
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        (folder/name).write_text('x')
    shutil.copytree(folder/'video_action_features', folder/'runs'/'video_action_features')
    assert about() == before
    monkeypatch.chdir(folder.parent)
    assert about(data='how2') == before
    (folder/'test_sum.txt').rename(folder/'val_sums.txt')
    assert about() != before

def test_content_decides_which_run_it_is_in_a_store(folder):
    source = FeatureFolder(folder/'video_action_features', HOW2_ACTION)
    items, place = dict(source.items()), folder/'video_action_features'
    shutil.rmtree(place)
    FeatureStore.create(place, items, HOW2_ACTION)
    run = Run('VDF', 'tiny', data=str(folder))
    before = run.name
    name = next(iter(items))
    FeatureStore.create(place, items | {name: items[name] + 1}, HOW2_ACTION)
    assert run.name != before
    FeatureStore.create(place, items, HOW2_ACTION)
    assert run.name == before

def test_a_teacher_of_other_features_is_another(folder, tmp_path):
    "By itself a teacher's name rests on a sample of the features."
    run = Run('VDF-TS-E', 'tiny', data=str(folder), smoke=True)
    teachers = lambda: len(list((tmp_path/'runs'/'teachers').glob('*/teacher-*/last.safetensors')))
    run.result(tmp_path/'runs')
    assert teachers() == 1
    x = rows(folder).copy()
    x[0, 0] += 1
    np.save(first_features(folder), x)
    run.result(tmp_path/'runs')
    assert teachers() == 2

PARAMETERS = {
    'unknown system': (dict(system='VDFF'), "did you mean 'VDF'"),
    'unknown preset': (dict(preset='smal'), "did you mean 'small'"),
    'no epochs': (dict(epochs=0), '0 epochs'),
    'negative epochs': (dict(epochs=-3), '-3 epochs'),
    'no such folder': (dict(data='no/such/folder'), 'no such folder'),
}

@pytest.mark.parametrize('case', PARAMETERS)
def test_a_wrong_parameter_is_explained(tmp_path, case):
    wrong, says = PARAMETERS[case]
    parameters = {'system': 'VDF', 'preset': 'tiny', 'smoke': True, **wrong}
    with pytest.raises(DataError, match=says) as e:
        Run(**parameters).result(tmp_path/'runs')
    one_sentence(e.value)
    assert not (tmp_path/'runs').exists()

def test_an_output_folder_that_cannot_be_written(tmp_path):
    (tmp_path/'file').write_text('in the way')
    run = Run('NCLS', 'tiny', smoke=True)
    with pytest.raises(DataError, match='choose another folder') as e:
        run.result(tmp_path/'file'/'runs')
    one_sentence(e.value)

SMALL = SummarizerConfig(
    source_words=20, target_words=20, d=16, heads=2, ffn=16, encoder_layers=1, decoder_layers=1,
    d_video=8, max_text=9, max_video=3)

def test_a_checkpoint_of_another_configuration(tmp_path):
    save_checkpoint(tmp_path/'ncls.safetensors', Summarizer(replace(SMALL, reads='text')))
    with pytest.raises(DataError, match='ncls.safetensors') as e:
        load_weights(Summarizer(SMALL), tmp_path/'ncls.safetensors')
    one_sentence(e.value)

def test_a_video_longer_than_the_model_has_positions_for():
    ids, mask = torch.full((1, 4), 5), torch.ones(1, 4, dtype=torch.bool)
    with pytest.raises(DataError, match='more than the model has positions for') as e:
        Summarizer(SMALL).encode(ids, mask, torch.zeros(1, 4, 8), mask)
    one_sentence(e.value)

def test_a_vocabulary_with_a_word_of_two_words():
    with pytest.raises(DataError, match='is not a word'): Vocab(['good', 'good morning'])
