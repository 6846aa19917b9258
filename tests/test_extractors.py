"Rows from frames and texts: parity with the public 3D ResNeXt-101, weights, sound and unsound."
import itertools, json, pickle, warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from helpers import refused
from mcls_nb.features import HOW2_ACTION, TVR_VIDEO, FeatureStore, doctor
from mcls_nb.videos.extractors import (
    Extractor, HashedText, PixelFeatures, TextEncoder, extract_video, subtitle_rows)
from mcls_nb.videos.media import Cue, read_transcript, write_video
from mcls_nb.videos.pretrained import (
    I3D, PretrainedText, ResidualNet, ResNeXt3D, TVRFeatures, fingerprint, read_weights)

FIXTURES = Path(__file__).parent/'fixtures'/'resnext3d'
SHAPES = json.loads((FIXTURES/'shapes.json').read_text())
NETS = {'resnet': ResidualNet, 'i3d': I3D,
        'resnext': lambda **k: ResidualNet(3, (3, 4, 23, 3), 128, 2, 32, **k)}


def u(n, k): # numbers from -.5 to .5 that anybody can make again
    whole = (np.arange(n, dtype=np.int64) * 2654435761 + k * 40503 + 12345) % 2**32
    return whole.astype(np.float64) / 2**32 - .5

def filled(shapes):
    "Weights by the rule of the fixture: name -> tensor."
    state = {}
    for k, (name, shape) in enumerate(shapes.items()):
        n = int(np.prod(shape))
        base, norm = u(n, k), 'bn' in name or 'downsample.1' in name
        if name.endswith('num_batches_tracked'):
            state[name] = torch.zeros(tuple(shape), dtype=torch.int64)
            continue
        if name.endswith('running_var'): x = 1 + .2 * base
        elif name.endswith('running_mean'): x = .02 * base
        elif name.endswith('bias'): x = .02 * base
        else: x = 1 + .1 * base if norm else base * np.sqrt(24 / (n / shape[0]))
        state[name] = torch.from_numpy(x.astype(np.float32).reshape(shape))
    return state

def shapes_of(kind, **changes):
    with torch.device('meta'): net = NETS[kind](**changes)
    return {k: list(v.shape) for k, v in net.state_dict().items()}

def count_weights(shapes):
    "Learned numbers: without the statistics of batch normalisation."
    learned = {k: s for k, s in shapes.items() if 'running' not in k and 'tracked' not in k}
    return sum(int(np.prod(s)) for s in learned.values())

def without(words, state):
    "The weights whose names hold none of the words."
    return {k: v for k, v in state.items() if not any(w in k for w in words)}

@pytest.fixture(scope='module')
def i3d_state(): return filled(shapes_of('i3d', classes=400))

@pytest.fixture(scope='module')
def resnet_state(): return filled(shapes_of('resnet', classes=1000))

@pytest.fixture(scope='module')
def resnext_state(): return filled(SHAPES['shapes'])

def noise(n, h=48, w=64, seed=0):
    "Frames of random pixels, 15 a second."
    pictures = np.random.default_rng(seed).integers(0, 256, (n, h, w, 3), np.uint8)
    return [(k / 15, x) for k, x in enumerate(pictures)]


# --- networks

def test_resnext_has_the_published_names_and_shapes():
    ours = shapes_of('resnext', stem=128, classes=400)
    assert list(ours.items()) == list(SHAPES['shapes'].items()) # in the same order
    with torch.device('meta'): net = NETS['resnext'](stem=128, classes=400)
    assert sum(p.numel() for p in net.parameters()) == SHAPES['params'] == 48_431_376

def test_resnext_equals_the_public_network(resnext_state):
    net, due = ResNeXt3D(resnext_state).net, np.load(FIXTURES/'out.npz')
    x = (4 * u(3 * 16 * 112 * 112, 777)).astype(np.float32)
    x = torch.from_numpy(x.reshape(1, 3, 16, 112, 112))
    with torch.inference_mode():
        features = net(x)
        logits = net.fc(features)
    for got, name in ((features, 'features'), (logits, 'logits')):
        largest = abs(due[name]).max()
        np.testing.assert_allclose(got.numpy(), due[name], rtol=1e-4, atol=1e-4 * largest)

def test_resnet152_has_the_names_of_torchvision():
    ours = shapes_of('resnet', classes=1000)
    assert len(ours) == 932
    assert ours['layer3.35.conv2.weight'] == [256, 256, 3, 3]
    assert ours['layer4.0.downsample.0.weight'] == [2048, 1024, 1, 1]
    assert count_weights(ours) == 60_192_808 # with the classifier

def test_i3d_has_the_names_of_the_pytorch_port():
    ours = shapes_of('i3d', classes=400)
    mixed = [f'Mixed_{m}' for m in '3b 3c 4b 4c 4d 4e 4f 5b 5c'.split()]
    plain = ['Conv3d_1a_7x7', 'Conv3d_2b_1x1', 'Conv3d_2c_3x3', 'logits']
    assert {k.split('.')[0] for k in ours} == {*plain, *mixed}
    assert ours['Mixed_4f.b1b.conv3d.weight'] == [320, 160, 3, 3, 3]
    assert ours['logits.conv3d.bias'] == [400]
    assert count_weights(ours) == 12_697_264


# --- weights

@pytest.mark.parametrize('form', ['safetensors', 'zip', 'legacy', 'wrapped', 'half'])
def test_weights_from_every_kind_of_file(tmp_path, i3d_state, form):
    path, state = tmp_path/'weights', dict(i3d_state)
    match form:
        case 'safetensors': save_file({k: v.clone() for k, v in state.items()}, path)
        case 'zip': torch.save(state, path)
        case 'legacy':
            old = without(['tracked'], state) # from before there were counters
            torch.save(old, path, _use_new_zipfile_serialization=False)
        case 'wrapped':
            wrapped = {f'module.{k}': v for k, v in state.items()}
            torch.save({'arch': 'i3d', 'epoch': 3, 'state_dict': wrapped}, path)
        case 'half': torch.save({k: v.half() for k, v in state.items()}, path)
    loaded = read_weights(path)
    assert set(without(['tracked'], state)) <= set(loaded)
    for k, v in loaded.items():
        torch.testing.assert_close(v.float(), state[k].float(), rtol=1e-3, atol=1e-4)

def test_stems_prefixes_and_classifiers(resnext_state):
    narrow = filled(shapes_of('resnext', classes=0))
    x = ResNeXt3D({f'module.{k}': v for k, v in narrow.items()})
    assert x.net.conv1.weight.shape[0] == 64 and x.net.fc is None
    a, b = ResNeXt3D(resnext_state), ResNeXt3D(without(['fc.', 'tracked'], resnext_state))
    assert a.contract == b.contract != x.contract # the classifier makes no row
    assert fingerprint(a.net) in a.contract.extractor
    for c in (a.contract, x.contract):
        assert (c.width, c.span, c.unit, c.order) == (2048, 16, 'frames', HOW2_ACTION.order)

def test_wrong_weights(resnet_state, i3d_state):
    half = dict(itertools.islice(i3d_state.items(), 100))
    refused(lambda: ResNeXt3D(half), 'does not hold a 3D ResNeXt-101',
            'are missing, e.g. conv1.weight', 'have names of another network')
    refused(lambda: TVRFeatures(resnet_state, half), 'does not hold an I3D: ',
            'weights are missing')
    reshaped = i3d_state | {'Mixed_3b.b0.bn.weight': torch.ones(63)}
    refused(lambda: TVRFeatures(resnet_state, reshaped),
            '1 weights have another shape, e.g. Mixed_3b.b0.bn.weight')
    broken = i3d_state | {'Mixed_3b.b0.bn.weight': torch.full((64,), torch.nan)}
    refused(lambda: TVRFeatures(resnet_state, broken), 'Mixed_3b.b0.bn.weight holds NaN')
    refused(lambda: ResNeXt3D({}), 'does not hold a 3D ResNeXt-101')

class Bomb:
    def __init__(self, path): self.path = path
    def __reduce__(self): return (Path.touch, (self.path,))

def bombs(folder):
    "Files that make `exploded` when somebody unpickles them."
    bomb = Bomb(folder/'exploded')
    torch.save({'conv1.weight': bomb}, folder/'zip.pth')
    torch.save({'conv1.weight': bomb}, folder/'legacy.pth', _use_new_zipfile_serialization=False)
    torch.save({'state_dict': {'conv1.weight': torch.ones(3)}, 'args': bomb}, folder/'beside.pth')
    (folder/'plain.pkl').write_bytes(pickle.dumps({'conv1.weight': bomb}))
    return [folder/n for n in ('zip.pth', 'legacy.pth', 'beside.pth', 'plain.pkl')]

def test_pickles_do_not_run(tmp_path):
    for file in bombs(tmp_path):
        refused(lambda: read_weights(file), file.name, 'no file of weights')
    assert not (tmp_path/'exploded').exists()
    torch.load(tmp_path/'zip.pth', weights_only=False) # the bombs are real
    assert (tmp_path/'exploded').exists()

@pytest.mark.parametrize('data, words', [
    (b'', ['is empty']), (b'text', ['is no file of weights']),
    (np.random.default_rng(0).bytes(4000), ['is no file of weights']),
    (b'\x08\0\0\0\0\0\0\0{"a": 1}', ['is no file of weights']),
    (b'PK\x03\x04' + bytes(200), ['is no file of weights']),
    (pickle.dumps([1, 2]), ['is no file of weights'])])
def test_files_without_weights(tmp_path, data, words):
    (tmp_path/'a.pth').write_bytes(data)
    refused(lambda: read_weights(tmp_path/'a.pth'), 'a.pth: ', *words)

def test_weights_from_elsewhere(tmp_path):
    refused(lambda: read_weights(tmp_path/'none.pth'), 'there is no such file')
    refused(lambda: read_weights(tmp_path), 'is a folder')
    for k, held in enumerate(({'a': 1}, torch.ones(3), {}, {'state_dict': {}})):
        torch.save(held, tmp_path/f'{k}.pth')
        refused(lambda: read_weights(tmp_path/f'{k}.pth'), 'does not hold named weights')
    torch.save({'a': torch.ones(300)}, tmp_path/'cut.pth')
    (tmp_path/'cut.pth').write_bytes((tmp_path/'cut.pth').read_bytes()[:-500])
    refused(lambda: read_weights(tmp_path/'cut.pth'), 'is no file of weights, or is damaged')


# --- rows of videos

def test_resnext_rows(resnext_state):
    x = ResNeXt3D(resnext_state)
    items = noise(37, 60, 50)
    rows = x.extract(items)
    assert rows.shape == (2, 2048) and rows.dtype == np.float32 # the rest of 5 frames makes none
    np.testing.assert_allclose(rows[1:], x.extract(items[16:32]), rtol=1e-5, atol=1e-6)
    loop, repeated = x.extract(items[:5]), x.extract([items[k % 5] for k in range(16)])
    np.testing.assert_allclose(loop, repeated, rtol=1e-5, atol=1e-6)
    assert x.extract([]).shape == (0, 2048)

def test_tvr_rows(resnet_state, i3d_state, tmp_path):
    x = TVRFeatures(resnet_state, i3d_state)
    c = x.contract
    assert isinstance(x, Extractor) and (c.width, c.span, c.order) == (3072, 1.5, TVR_VIDEO.order)
    rows = x.extract(noise(8)) # two pictures for ResNet-152
    assert rows.shape == (1, 3072)
    lengths = [np.linalg.norm(r) for r in np.split(rows[0], [2048])]
    np.testing.assert_allclose(lengths, 1, rtol=.01) # 1e-5 is added to the length before dividing
    FeatureStore.create(tmp_path/'s', {'a': rows}, x.contract)
    assert doctor(tmp_path/'s') == []
    x.signed = True
    flat, deep = np.split(abs(x.extract(noise(8)) - rows)[0], [2048])
    assert flat.max() < 1e-6 < deep.max()
    assert x.extract(noise(2)).shape == (0, 3072)

def test_pixels_are_repeatable_and_aligned(tmp_path):
    pytest.importorskip('av')
    shown = [x for _, x in noise(60, seed=1)]
    write_video(tmp_path/'a.mp4', shown, fps=10)
    x = PixelFeatures()
    rows = extract_video(tmp_path/'a.mp4', x)
    assert rows.shape == (4, 192) # 6 s in clips of 1.5 s
    assert np.array_equal(rows, extract_video(tmp_path/'a.mp4', x))
    late, moving = extract_video(tmp_path/'a.mp4', x, start=3.), range(48, 64)
    still, due = np.delete(late[0], moving), np.delete(rows[2], moving)
    np.testing.assert_allclose(still, due, atol=1e-6) # motion alone knows what was before
    np.testing.assert_allclose(late[1], rows[3], atol=1e-6)
    FeatureStore.create(tmp_path/'s', {'a': rows}, x.contract)
    assert doctor(tmp_path/'s') == []

def test_pixels_tell_scenes_apart():
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8)[None, :, None], (48, 1, 3))
    scenes = {'dark': np.zeros((48, 64, 3), np.uint8), 'ramp': ramp, 'turned': ramp[:, ::-1],
              'red': np.full((48, 64, 3), (250, 10, 10), np.uint8)}
    rows = {k: PixelFeatures().extract([(0., x), (.2, x)])[0] for k, x in scenes.items()}
    colour, edges = {k: r[:48] for k, r in rows.items()}, {k: r[64:] for k, r in rows.items()}
    assert all(abs(r[48:64]).max() == 0 for r in rows.values()) and not edges['dark'].any()
    assert colour['red'] @ colour['dark'] < .5 and colour['ramp'] @ colour['turned'] < 0
    # the same edges, turned by 180 degrees
    assert edges['ramp'] @ edges['turned'] == pytest.approx(1, abs=.01)

def test_a_video_too_short_for_a_row(tmp_path):
    pytest.importorskip('av')
    write_video(tmp_path/'a.mp4', [np.zeros((48, 64, 3), np.uint8)], fps=15)
    class Picky(PixelFeatures):
        def extract(self, frames): return super().extract(list(frames)[5:])
    refused(lambda: extract_video(tmp_path/'a.mp4', Picky()), 'a.mp4: is too short for a row')


# --- rows of texts

def test_hashed_text_finds_words_again():
    x = HashedText(width=512)
    assert isinstance(x, TextEncoder)
    texts = ['She waters the garden.', 'garden watering', 'He drives a truck']
    a, b, c = (np.maximum.reduce(r) for r in x.encode(texts))
    assert a @ b > 2 * (a @ c) and x.encode(['garden'])[0].shape == (1, 512)
    again = HashedText(width=512).encode(['garden'])[0]
    np.testing.assert_array_equal(x.encode(['Garden!'])[0], again)
    np.testing.assert_allclose(np.linalg.norm(x.encode(['多喝热水 please'])[0], axis=1), 1, rtol=1e-6)
    assert [len(r) for r in x.encode(['', '?!', '好', 'a'])] == [0, 0, 1, 1]

def test_hashes_do_not_depend_on_the_process():
    row = HashedText(width=768).encode(['tea'])[0][0]
    assert np.flatnonzero(row).tolist() == [96, 191, 523, 528, 547, 656]

def naive_subtitles(cues, encoder, n, seconds): # clip by clip
    rows = np.zeros((n, encoder.contract.width), np.float32)
    for k in range(n):
        heard = [c for c in cues if c.start < (k + 1) * seconds and c.end > k * seconds]
        words = [w for c in heard for w in encoder.encode([c.text])[0]]
        if words: rows[k] = np.max(words, 0) / np.linalg.norm(np.max(words, 0))
    return rows

def test_subtitles_meet_their_clips():
    rng = np.random.default_rng(0)
    for seconds in (1.5, 1., .7):
        starts = rng.uniform(0, 20, 30).round(1)
        lasting = rng.choice([.3, 1.5, 4., 6.], 30)
        texts = rng.choice(['tea', 'milk and tea', 'bread', '...'], 30)
        cues = [Cue(s, s + d, t) for s, d, t in zip(starts, lasting, texts)]
        x = HashedText(width=64, seconds=seconds)
        due = naive_subtitles(cues, x, 40, seconds)
        np.testing.assert_allclose(subtitle_rows(cues, x, 40), due, atol=1e-6)

def test_subtitles_beyond_the_end_and_without_times():
    with pytest.warns(UserWarning, match=r'1 of 2 cues begin after the end of the video \(3 s\)'):
        rows = subtitle_rows([Cue(2., 9., 'tea'), Cue(3., 4., 'milk')], HashedText(), 2)
    assert not rows[0].any() and rows[1].any()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        silence = subtitle_rows([], HashedText(), 3)
        assert silence.shape == (3, 768) and not silence.any()
    refused(lambda: subtitle_rows([Cue(None, None, 'tea')], HashedText(), 2), 'has no times')


# --- pretrained text encoders

@pytest.fixture(scope='module')
def roberta(tmp_path_factory):
    "A folder with a tiny RoBERTa of random weights and a tokenizer made here."
    hf, tokenizers = pytest.importorskip('transformers'), pytest.importorskip('tokenizers')
    folder = tmp_path_factory.mktemp('roberta')
    special = ['<s>', '<pad>', '</s>', '<unk>', '<mask>']
    raw = tokenizers.ByteLevelBPETokenizer()
    sentences = ['she waters the garden', 'he drives a truck', 'tea and milk'] * 5
    raw.train_from_iterator(sentences, vocab_size=300, special_tokens=special)
    ends = tokenizers.processors.RobertaProcessing(('</s>', 2), ('<s>', 0))
    raw._tokenizer.post_processor = ends
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=raw._tokenizer, bos_token='<s>', eos_token='</s>', cls_token='<s>',
        sep_token='</s>', pad_token='<pad>', unk_token='<unk>', mask_token='<mask>')
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    cfg = hf.RobertaConfig(
        vocab_size=raw.get_vocab_size(), hidden_size=16, num_hidden_layers=3,
        num_attention_heads=2, intermediate_size=32, max_position_embeddings=64, pad_token_id=1,
        bos_token_id=0, eos_token_id=2)
    hf.RobertaModel(cfg).save_pretrained(folder)
    return folder

def test_pretrained_text_takes_the_layer_before_the_last(roberta):
    x, texts = PretrainedText(roberta), ['she waters the garden', '', 'tea', 'tea and milk ' * 30]
    rows = x.encode(texts)
    assert [r.shape[1] for r in rows] == [16] * 4
    assert len(rows[1]) == 0 and len(rows[3]) == 28 # 30 with the special tokens
    for text, got in zip(texts, rows):
        ids = [0] + x.tokenizer(text, add_special_tokens=False)['input_ids'][:28] + [2]
        with torch.inference_mode(): out = x.net(torch.tensor([ids]), output_hidden_states=True)
        assert len(out.hidden_states) == 4
        alone = out.hidden_states[2][0, 1:-1].numpy()
        np.testing.assert_allclose(got, alone, atol=1e-5) # alone or in a padded batch
    assert (x.contract.width, x.contract.normalisation) == (16, 'none')
    assert fingerprint(x.net) in x.contract.extractor
    heard = subtitle_rows([Cue(0., 1., 'tea')], x, 2)
    np.testing.assert_allclose(heard[0], rows[2].max(0), atol=1e-5)

def test_folders_without_a_text_encoder(roberta, tmp_path):
    refused(lambda: PretrainedText(tmp_path/'none'), 'is not a folder with a model')
    (tmp_path/'config.json').write_text('{"model_type": "roberta"}')
    refused(lambda: PretrainedText(tmp_path), 'cannot be loaded')
    (tmp_path/'config.json').write_text('{')
    refused(lambda: PretrainedText(tmp_path), 'cannot be loaded')


# --- the whole path

def test_from_files_to_a_store_without_any_weights(tmp_path):
    pytest.importorskip('av'), pytest.importorskip('pysubs2')
    write_video(tmp_path/'a.mp4', [x for _, x in noise(30)], fps=5)
    (tmp_path/'a.srt').write_text('1\n00:00:01,000 --> 00:00:02,000\nshe waters the garden\n')
    video, text = PixelFeatures(), HashedText()
    rows = extract_video(tmp_path/'a.mp4', video)
    said = subtitle_rows(read_transcript(tmp_path/'a.srt'), text, len(rows))
    for name, x, c in (('video', rows, video.contract), ('text', said, text.contract)):
        FeatureStore.create(tmp_path/name, {'a': x}, c)
        assert doctor(tmp_path/name) == []
    assert len(rows) == len(said) == 4 and said.any(1).tolist() == [True, True, False, False]
