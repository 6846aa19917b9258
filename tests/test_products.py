"""A trained model that is saved and opened by somebody else: in another process it answers the
same, says why, and a folder that is not whole is refused in one sentence."""
import json, pickle, shutil, subprocess, sys
from pathlib import Path

import numpy as np
import pytest

from helpers import refused
from mcls_nb.finder import MomentFinder
from mcls_nb.model_folder import CONFIG, WEIGHTS
from mcls_nb.papers.runs import Run
from mcls_nb.papers.systems import load
from mcls_nb.retrieve.recipes import SearchConfig
from mcls_nb.summarizer import VideoSummarizer

WRITERS = 'VDF', 'Pipe-NCLS', 'HA'
FINDERS = 'mXML', 'XML', 'C3 sum', 'MEE+MCN'
PARTS = 'cross', 'video', 'gate_attention', 'gate', 'shares' # of a `SummaryView`

def smoke(system): return Run(system, 'tiny', seed=2, smoke=True)

def plain(x):
    "An array as JSON can hold it."
    return None if x is None else np.asarray(x).tolist()


# --- what a model is asked, here and elsewhere

def summaries(model, records, features):
    "What a summarizer writes about some videos, and where its words looked."
    texts = [r.transcripts[model.language] for r in records]
    videos = [features[r.id] for r in records]
    found = []
    for s in model(texts, videos if model.reads != 'text' else None):
        view = s.explain()
        assert view.summary == s.text and view.words == s.tokens
        said = dict(text=s.text, tokens=list(s.tokens), score=s.score, source=list(view.source))
        found.append(said | {part: plain(getattr(view, part)) for part in PARTS})
    return found

def typed(corpus):
    "What somebody might type, in both languages."
    return [q.texts[language] for q in corpus.splits['test'][:3] for language in ('en', 'zh')]

def why(view):
    "What a view of a moment says, in plain values."
    arrays = {part: plain(getattr(view, part)) for part in ('curves', 'weights', 'start', 'end')}
    return arrays | dict(parts=view.parts, words=list(view.words))

def moments(model, corpus):
    "What a finder answers in both languages, and why."
    found = model.index(corpus, 'test').search(typed(corpus), k=4)
    known = model.search(corpus.splits['test'][:3], 'zh', k=4, nms=None)
    answers = dict(typed=found.to_dict('list'), known=known.to_dict('list'))
    if model.explains: answers['why'] = [why(model.explain(a)) for a in found.itertuples()]
    return answers

def ask_all(folder):
    "Everything that saved models answer; an index of mXML's lies beside them."
    how2, tv = (smoke(name).open() for name in ('VDF', 'mXML'))
    records, found = how2.splits['test'][:3], {}
    for name in WRITERS: found[name] = summaries(load(folder/name), records, how2.features)
    for name in FINDERS: found[name] = moments(load(folder/name), tv)
    reopened = load(folder/'mXML').index(path=folder/'index') # without the videos
    return found | dict(reopened=reopened.search(typed(tv), k=4).to_dict('list'))


@pytest.fixture(scope='module')
def products(tmp_path_factory):
    "Trained models by name."
    out = tmp_path_factory.mktemp('runs')
    return {name: smoke(name).train(out)[0] for name in WRITERS + FINDERS}

@pytest.fixture(scope='module')
def saved(products, tmp_path_factory):
    "The folder where all of them are kept, and an index on disk."
    folder = tmp_path_factory.mktemp('saved')
    for name, product in products.items(): product.save_pretrained(folder/name)
    products['mXML'].index(smoke('mXML').open(), 'test', folder/'index')
    return folder

@pytest.fixture(scope='module')
def elsewhere(saved):
    "What all of them answer in another process."
    command = [sys.executable, __file__, str(saved)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((saved/'answers.json').read_text('utf-8'))


# --- the same in another process

def as_json(values): return json.loads(json.dumps(values))

@pytest.mark.parametrize('name', WRITERS)
def test_a_summarizer_writes_the_same_elsewhere(products, elsewhere, name):
    corpus = smoke('VDF').open()
    here = summaries(products[name], corpus.splits['test'][:3], corpus.features)
    assert as_json(here) == elsewhere[name]
    assert len(here) == 3 and all(s['cross'] for s in here)
    looks = name != 'Pipe-NCLS'
    assert all((s['video'] is not None) == looks for s in here)

@pytest.mark.parametrize('name', FINDERS)
def test_a_finder_finds_the_same_elsewhere(products, elsewhere, name):
    here = as_json(moments(products[name], smoke('mXML').open()))
    assert here.keys() == elsewhere[name].keys()
    for part, answers in here.items(): assert answers == elsewhere[name][part], part
    assert set(here['typed']['language']) == {'en', 'zh'}
    assert set(here['known']['language']) == {'zh'}
    assert ('why' in here) == (name != 'MEE+MCN')

def test_an_index_on_disk_answers_the_same_in_both_languages(elsewhere):
    assert elsewhere['reopened'] == elsewhere['mXML']['typed']
    assert set(elsewhere['reopened']['language']) == {'en', 'zh'}

def test_settings_survive(products, saved):
    for name, product in products.items():
        again = load(saved/name)
        assert type(again) is type(product) and again.provenance == product.provenance
        assert again.provenance['system'] == name
    for name in WRITERS:
        again, product = load(saved/name), products[name]
        assert again.decoding == product.decoding
        assert again.language == product.language == 'pt'
        assert (again.max_text, again.max_video) == (product.max_text, product.max_video)
        assert [v.tokens for v in again.vocabs] == [v.tokens for v in product.vocabs]
    for name in FINDERS:
        again, product = load(saved/name), products[name]
        assert again.settings == product.settings
        assert (again.max_clips, again.max_words) == (product.max_clips, product.max_words)
        assert again.languages == ('en', 'zh') and again.text == product.text

def test_a_sum_of_streams_is_searched_as_one(saved):
    "A sum of two streams needs half the exponent of their mean; nobody has to say so."
    both, one = load(saved/'C3 sum').settings, load(saved/'mXML').settings
    assert both == SearchConfig(rule=one.rule, alpha=10., merge='sum')
    assert (one.alpha, one.merge) == (20., 'mean')

def test_networks_are_shared_as_they_were(saved):
    shared = {name: len(load(saved/name).networks) for name in FINDERS}
    assert shared == {'mXML': 1, 'C3 sum': 1, 'XML': 2, 'MEE+MCN': 4}
    assert load(saved/'Pipe-NCLS').translator is not None


# --- the folder

def test_both_kinds_open(saved):
    assert isinstance(load(saved/'VDF'), VideoSummarizer)
    assert isinstance(load(saved/'mXML'), MomentFinder)
    refused(lambda: VideoSummarizer.from_pretrained(saved/'mXML'), 'describes no VideoSummarizer')
    refused(lambda: MomentFinder.from_pretrained(saved/'VDF'), 'describes no MomentFinder')

def test_the_hub_is_a_call_away():
    for kind in (VideoSummarizer, MomentFinder): assert callable(kind.push_to_hub)

def test_somebody_elses_folder_is_left_alone(products, saved, tmp_path):
    (tmp_path/'thesis.tex').write_text('years of work')
    for name in ('VDF', 'mXML'):
        refused(lambda: products[name].save_pretrained(tmp_path), 'not a')
    refused(lambda: products['VDF'].save_pretrained(saved/'mXML'), 'not a VideoSummarizer')
    assert [p.name for p in tmp_path.iterdir()] == ['thesis.tex']
    assert (tmp_path/'thesis.tex').read_text() == 'years of work'

def test_a_model_replaces_itself(products, tmp_path):
    for name in ('HA', 'HA'): products[name].save_pretrained(tmp_path/'model')
    assert load(tmp_path/'model').provenance['system'] == 'HA'

def configured(change):
    "A change of the description."
    def breaks(folder):
        known = json.loads((folder/CONFIG).read_text('utf-8'))
        change(known)
        (folder/CONFIG).write_text(json.dumps(known), 'utf-8')
    return breaks

def of_network(**changes): return configured(lambda c: c['network'].update(changes))

def shortened(name): return lambda f: (f/name).write_bytes((f/name).read_bytes()[:-7])

def removed(name): return lambda f: (f/name).unlink()

def pickled(name): return lambda f: (f/name).write_bytes(pickle.dumps(dict(a=1)))

DAMAGE = { # what is done to the folder, what is said
    'no folder': (shutil.rmtree, 'there is no such folder'),
    'no description': (removed(CONFIG), f'holds no {CONFIG}'),
    'half a description': (shortened(CONFIG), 'is not JSON'),
    'a description of letters': (lambda f: (f/CONFIG).write_bytes(b'\xff\xfe'), 'is not UTF-8'),
    'a list as a description': (lambda f: (f/CONFIG).write_text('[]'), 'describes no'),
    'of another package': (configured(lambda c: c.update(made_by='x')), 'describes no'),
    'of a later version': (configured(lambda c: c.update(format=7)), 'has format 7'),
    'without a list of files': (configured(lambda c: c.pop('files')), 'lacks'),
    'without its words': (configured(lambda c: c['files'].pop('source.vocab')), 'lacks'),
    'without its search': (configured(lambda c: c.pop('decoding')), 'lacks'),
    'an unknown field': (of_network(deep=3), "no field of SummarizerConfig 'deep'"),
    'an unknown network': (of_network(**{'class': 'GPT'}), "no network 'GPT'"),
    'another width': (of_network(d=24), WEIGHTS),
    'an impossible width': (of_network(d=25), 'divide'),
    'no weights': (removed(WEIGHTS), 'is missing'),
    'half the weights': (shortened(WEIGHTS), 'not a whole safetensors file'),
    'pickled weights': (pickled(WEIGHTS), 'is a pickle'),
    'no words': (removed('source.vocab'), 'is missing'),
    'other words': (lambda f: (f/'target.vocab').write_text('tea 1\n'), 'is not what was written'),
    'a pickle beside it': (pickled('pytorch_model.bin'), 'may run any code'),
    'a file elsewhere': (configured(lambda c: c['files'].update({'../x': ''})), 'is missing')}

@pytest.mark.parametrize('damage', DAMAGE)
def test_a_damaged_folder_is_explained(saved, tmp_path, damage):
    breaks, says = DAMAGE[damage]
    folder = Path(shutil.copytree(saved/'VDF', tmp_path/'model'))
    breaks(folder)
    refused(lambda: load(folder), says)

LOST = 'networks', 'systems', 'settings', 'max_clips'

@pytest.mark.parametrize('part', LOST)
def test_a_damaged_finder_is_explained(saved, tmp_path, part):
    folder = Path(shutil.copytree(saved/'MEE+MCN', tmp_path/'model'))
    configured(lambda c: c.pop(part))(folder)
    refused(lambda: load(folder), part)

def test_what_a_model_cannot_answer_is_said(saved):
    writer, finder, staged = (load(saved/name) for name in ('VDF', 'mXML', 'MEE+MCN'))
    refused(lambda: writer('o chá'), 'video 0: is missing')
    refused(lambda: writer('o chá', np.zeros((3, 2), np.float32)), 'video 0')
    refused(lambda: finder.search('a door'), 'has no videos to search')
    refused(lambda: finder.index('nowhere'), 'nowhere')
    reopened = load(saved/'mXML').index(path=saved/'index')
    corpus = smoke('mXML').open()
    refused(lambda: reopened.search(corpus.splits['test'][0], 'en'), 'has only an index')
    refused(lambda: staged.index(corpus, 'test', path='index'), 'has no index on disk')
    refused(lambda: staged.index(corpus, 'test').explain('a door', 'x'), 'no curve of clips')
    assert not Path('index').exists()


if __name__ == '__main__':
    folder = Path(sys.argv[1])
    (folder/'answers.json').write_text(json.dumps(ask_all(folder)), 'utf-8')
